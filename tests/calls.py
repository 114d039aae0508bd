"""Model calls of a made-up conversation."""

import random

from stateset_agents.trace import ModelCall


def talk(calls: int, *, tokens: int = 60, texts: bool = False) -> tuple[ModelCall, ...]:
    """A conversation's calls: each prompt is the one before, its answer, and something new."""
    rng, prompt, made = random.Random(calls), list(range(200)), []
    messages: list[dict[str, str]] = [{"role": "system", "content": "You are an agent. " * 20}]
    for number in range(calls):
        prompt += [rng.randrange(50_000) for _ in range(tokens // 2)]
        sampled = tuple(rng.randrange(50_000) for _ in range(tokens // 2))
        messages = [*messages, {"role": "user", "content": f"question {rng.random()}"}]
        answer = {"role": "assistant", "content": f"answer {rng.random()}"}
        made.append(
            ModelCall(
                response_id=f"r{calls}-{number}", node="policy", version="v0", prompt_ids=tuple(prompt),
                sampled_ids=sampled, logprobs=tuple(-rng.random() for _ in sampled),
                messages=tuple(messages) if texts else (), answer=answer if texts else None,
            )
        )  # fmt: skip
        prompt += sampled
        messages = [*messages, answer]
    return tuple(made)
