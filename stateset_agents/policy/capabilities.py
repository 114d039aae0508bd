"""What a policy server can do, asked before anything depends on it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from stateset_agents.errors import NotExact, PolicyRefused, PolicyUnreachable
from stateset_agents.policy.pool import Server, Servers

FLAGS = "`stateset-agents policy serve --engine vllm` starts vLLM with what is needed."
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
    },
}
_ASKED = [{"role": "user", "content": "Where is my order?"}]


@dataclass(frozen=True, slots=True)
class Able:
    """What was found. Token ids, log-probabilities of what was sampled, and tools are there, or `probe` refuses."""

    model: str
    """The base model's name."""
    adapters: bool
    """Whether adapters can be loaded while it runs."""
    renders: bool
    """Whether it renders messages into ids (`/tokenize`), and so takes prompts as ids."""
    prompt_ids: tuple[int, ...]
    """The ids of a fixed message, by which another tokenizer is known."""


PATIENCE = 30.0
"""Seconds that a server which was there may take to be there again."""


async def probe(servers: Servers, *, adapters: bool = False) -> Able:
    """Ask every server. `adapters`: refuse one that cannot load any. Raises PolicyUnreachable where one is away, PolicyRefused where it
    refuses to answer or to load adapters, and NotExact where it does not say what it sampled."""
    found = await asyncio.gather(*(_probed(servers, one) for one in servers.servers))
    for one, able in zip(servers.servers, found, strict=True):
        if adapters and not able.adapters:
            raise PolicyRefused(
                f"Expected {one.url} to load adapters while it runs, found that it has no such endpoint. Start vLLM with --enable-lora and "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1. {FLAGS}"
            )
        if (able.model, able.prompt_ids) != (found[0].model, found[0].prompt_ids):
            raise PolicyRefused(
                f"Expected the same model at {servers.urls[0]} and {one.url}, found {found[0].model!r} and {able.model!r}"
                f"{'' if able.model != found[0].model else ' with different tokens for the same words'}."
            )
    servers.tokenizes = all(able.renders for able in found)
    return found[0]


async def _probed(servers: Servers, one: Server) -> Able:
    alone = Servers([one.url], servers.key)
    (server,) = alone.servers
    models = (await alone.ask(server, "GET", "/models"))["data"]
    if not models:
        raise PolicyRefused(f"Expected {one.url} to serve a model, found none.")
    model = str(models[0]["id"])
    warm, hot = await asyncio.gather(*(_one_token(alone, model, heat) for heat in (1.0, 2.0)))
    _check_heat(one.url, warm, hot)
    renders = True
    try:
        await alone.post("/tokenize", {"model": model, "messages": _ASKED}, patience=PATIENCE)
    except PolicyUnreachable:
        renders = False
    return Able(
        model=model,
        adapters=await _loads(alone, server),
        renders=renders,
        prompt_ids=tuple(warm["prompt_token_ids"]),
    )


async def _one_token(servers: Servers, model: str, temperature: float) -> dict[str, Any]:
    url = servers.urls[0]
    body = {
        "model": model, "messages": _ASKED, "tools": [_TOOL], "max_tokens": 1, "temperature": temperature, "seed": 0,
        "logprobs": True, "top_logprobs": 3, "return_token_ids": True,
    }  # fmt: skip
    # It has answered already, so one answer that is lost is no reason to give it up.
    answer, _ = await servers.post("/chat/completions", body, patience=PATIENCE)
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


def _check_heat(url: str, warm: dict[str, Any], hot: dict[str, Any]) -> None:
    """Twice the temperature halves the distance between two log-probabilities, where they are those of the distribution that is sampled."""
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


async def _loads(servers: Servers, server: Server) -> bool:
    """Asked to drop an adapter that nobody has: a server that knows of adapters says so in OpenAI's shape."""
    try:
        await servers.ask(server, "POST", "/unload_lora_adapter", {"lora_name": "no-such-adapter"})
    except PolicyRefused as refused:
        return "no-such-adapter" in str(refused)
    return True
