"""The trainer's tokenizer: it renders prompts for the policy, and must agree with the server's tokenizer."""

from typing import Any

from stateset_agents.errors import BadInput
from stateset_agents.policy.pool import ReplicaPool
from stateset_agents.policy.rendering import Renderer
from stateset_agents.settings import load_settings

PROBE: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Is {"zip": "02134"} the caf\u00e9 at 5\u202fth St.?'},
]
"""Messages for which tokenizers differ."""


async def check_tokenizer(pool: ReplicaPool, model: str, renderer: Renderer) -> None:
    """Raises BadInput if the servers' tokenizer and the trainer's make different tokens of the same messages."""
    body = {"model": model, "messages": PROBE, "max_tokens": 1, "return_token_ids": True}
    answer, _ = await pool.post(
        "/chat/completions", body, retry_seconds=load_settings().retry_seconds
    )
    served = list(answer["prompt_token_ids"])
    own = renderer.prompt(PROBE, None)
    if own != served:
        raise BadInput(
            f"Expected the tokenizer of {renderer.tokenizer.name_or_path!r} behind {', '.join(pool.urls)}, found one that makes other "
            f"tokens of the same messages ({len(served)} against {len(own)}). Give the --model that is served there."
        )
