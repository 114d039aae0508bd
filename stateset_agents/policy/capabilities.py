"""Capabilities of policy servers, probed before they are used."""

import asyncio
from dataclasses import dataclass
from typing import Any

from stateset_agents.errors import NotExact, PolicyRefused, PolicyUnreachable
from stateset_agents.policy.chat_template import PROBE_TOOL, probes
from stateset_agents.policy.pool import ReplicaPool
from stateset_agents.policy.replica import Replica

FLAGS = "`stateset-agents policy serve --engine vllm` starts vLLM with what is needed."
_MESSAGES = [{"role": "user", "content": "Where is my order?"}]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Abilities of the replicas. Without token ids, log-probabilities of the sampled tokens, or tools, `probe` refuses."""

    model: str
    """The base model's name."""
    adapters: bool
    """Whether adapters can be loaded while it runs."""
    tokenizes: bool
    """Whether it tokenizes messages (`/tokenize`), and so takes prompts as ids."""
    prompt_ids: tuple[int, ...]
    """The ids of a fixed message, to compare tokenizers."""


RETRY_SECONDS = 30.0
"""How long to wait for a replica that answered before, in seconds."""


async def probe(pool: ReplicaPool, *, adapters: bool = False) -> Capabilities:
    """Probe every replica. `adapters`: they must be able to load adapters. Raises PolicyUnreachable if one does not answer,
    PolicyRefused if it refuses to answer or to load adapters, and NotExact if it gives no exact tokens."""
    results = await asyncio.gather(*(_probe_one(pool, replica) for replica in pool.replicas))
    first = results[0]
    for replica, result in zip(pool.replicas, results, strict=True):
        if adapters and not result.adapters:
            raise PolicyRefused(
                f"Expected {replica.url} to load adapters while it runs, found that it has no such endpoint. Start vLLM with --enable-lora and "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1. {FLAGS}"
            )
        if (result.model, result.prompt_ids) != (first.model, first.prompt_ids):
            raise PolicyRefused(
                f"Expected the same model at {pool.urls[0]} and {replica.url}, found {first.model!r} and {result.model!r}"
                f"{'' if result.model != first.model else ' with different tokens for the same words'}."
            )
    pool.tokenizes = all(result.tokenizes for result in results)
    await probe_template(pool, first.model)
    return first


async def probe_template(pool: ReplicaPool, model: str) -> None:
    """Find out what the model's chat template hides (`pool.hides`): the prompts of two requests that differ are compared."""
    pool.hides = frozenset()
    hidden = set()
    for name, requests in probes().items():
        try:
            prompts = [await _prompt(pool, {"model": model, **body}) for body in requests]
        except PolicyRefused as refused:
            if refused.status not in (400, 422):
                raise
            hidden.add(name)
            continue
        counted = isinstance(prompts[0], int)  # the number says nothing of which order a call names
        if prompts[0] is not None and prompts[0] == prompts[1] and (name == "tools" or not counted):
            hidden.add(name)
    pool.hides = frozenset(hidden)


async def _prompt(pool: ReplicaPool, body: dict[str, Any]) -> list[int] | int | None:
    """The ids of a prompt, or their number if the server gives no more; None if it gives neither."""
    body = {**body, "max_tokens": 1, "temperature": 0.0}
    answer, _ = await pool.post(
        "/chat/completions", body | {"return_token_ids": True}, retry_seconds=RETRY_SECONDS
    )
    ids: list[int] | None = answer.get("prompt_token_ids")
    count: int | None = (answer.get("usage") or {}).get("prompt_tokens")
    return ids or count


async def _probe_one(pool: ReplicaPool, replica: Replica) -> Capabilities:
    alone = ReplicaPool([replica.url], pool.transport.key)
    models = (await alone.transport.request(replica.url, "GET", "/models"))["data"]
    if not models:
        raise PolicyRefused(f"Expected {replica.url} to serve a model, found none.")
    model = str(models[0]["id"])
    warm, hot = await asyncio.gather(*(_one_token(alone, model, t) for t in (1.0, 2.0)))
    check_temperature(replica.url, warm, hot)
    tokenizes = True
    try:
        body = {"model": model, "messages": _MESSAGES}
        await alone.post("/tokenize", body, retry_seconds=RETRY_SECONDS)
    except PolicyUnreachable:
        tokenizes = False
    return Capabilities(
        model=model,
        adapters=await _loads_adapters(alone, replica),
        tokenizes=tokenizes,
        prompt_ids=tuple(warm["prompt_token_ids"]),
    )


async def _one_token(pool: ReplicaPool, model: str, temperature: float) -> dict[str, Any]:
    url = pool.urls[0]
    body = {
        "model": model, "messages": _MESSAGES, "tools": [PROBE_TOOL], "max_tokens": 1, "temperature": temperature, "seed": 0,
        "logprobs": True, "top_logprobs": 3, "return_token_ids": True,
    }  # fmt: skip
    # It has answered already, so one answer that is lost is no reason to give it up.
    answer, _ = await pool.post("/chat/completions", body, retry_seconds=RETRY_SECONDS)
    choice = answer["choices"][0]
    if not answer.get("prompt_token_ids") or not choice.get("token_ids"):
        raise NotExact(
            f"Expected the ids of prompt and answer from {url} (`return_token_ids`), found none: what it samples cannot be trained on. "
            "vLLM gives them from 0.10 on; --include-reasoning false and a reasoning parser hide them."
        )
    entries = (choice.get("logprobs") or {}).get("content") or []
    if len(entries) != len(choice["token_ids"]):
        raise NotExact(
            f"Expected a log-probability for each sampled token from {url}, found {len(entries)} for {len(choice['token_ids'])}."
        )
    return answer


def check_temperature(url: str, warm: dict[str, Any], hot: dict[str, Any]) -> None:
    """Check that log-probabilities are of the sampling distribution: then twice the temperature halves the distance between two
    of them."""
    tops = [
        {entry["token"]: entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
        for answer in (warm, hot)
    ]  # fmt: skip
    shared = sorted(set(tops[0]) & set(tops[1]), key=lambda token: -tops[0][token])
    if len(shared) < 2:
        return
    far, near = (top[shared[0]] - top[shared[-1]] for top in tops)
    if far > 0.05 and abs(near - far / 2) > 0.05 * far + 1e-3:
        raise NotExact(
            f"Expected log-probabilities of the distribution that is sampled from {url}, found those of the model's raw logits: temperature "
            f"does not change them. Start vLLM with --logprobs-mode processed_logprobs. {FLAGS}"
        )


async def _loads_adapters(pool: ReplicaPool, replica: Replica) -> bool:
    """Check that adapters can be loaded: a server with adapters names the unknown adapter when it refuses to unload it."""
    try:
        body = {"lora_name": "no-such-adapter"}
        await pool.transport.request(replica.url, "POST", "/unload_lora_adapter", body)
    except PolicyRefused as refused:
        return "no-such-adapter" in str(refused)
    return True
