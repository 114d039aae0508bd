"""What a policy server must be able to do is asked before anything depends on it."""

from typing import Any

import pytest
from aiohttp import web

from stateset_agents.errors import BadInput, NotExact, PolicyRefused, PolicyUnreachable
from stateset_agents.jobs.tokenizer import check_tokenizer
from stateset_agents.policy.capabilities import probe
from stateset_agents.policy.pool import ReplicaPool, pool_at
from stateset_agents.policy.rendering import renderer_of
from stateset_agents.policy.weight_files import SEED_POLICY
from tests.policy_double import (
    answer,
    doubles,
    entry,
    pooled,
)


def changed(change: Any) -> Any:
    """Answers, each with a change to it."""

    async def act(number: int, body: dict[str, Any]) -> web.Response:
        made = answer(number, body)
        change(made, made["choices"][0], body)
        return web.json_response(made)

    return act


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda made, choice, body: made.pop("prompt_token_ids"), "return_token_ids"),
        (lambda made, choice, body: choice.update(token_ids=None), "return_token_ids"),
        (lambda made, choice, body: choice.update(logprobs=None), "a log-probability for each"),
        (
            lambda made, choice, body: choice.update(logprobs={"content": [entry(body, 1.0)] * 2}),
            "processed_logprobs",
        ),
    ],
)
async def test_a_server_that_does_not_say_what_it_sampled_is_refused(
    change: Any, error: str
) -> None:
    async with doubles(1) as (server,):
        await probe(pooled([server]), adapters=True)
        server.act = changed(change)
        with pytest.raises(NotExact, match=error):
            await probe(pooled([server]))


async def test_servers_that_are_not_alike_or_take_no_adapters_are_refused() -> None:
    async with doubles(2) as made:
        made[1].act = changed(lambda made, choice, body: made.update(prompt_token_ids=[9]))
        with pytest.raises(PolicyRefused, match="different tokens for the same words"):
            await probe(pooled(made))
        made[0].adapters = False
        with pytest.raises(PolicyRefused, match="--enable-lora"):
            await probe(pooled(made[:1]), adapters=True)
        assert not (await probe(pooled(made[:1]))).adapters
    with pytest.raises(PolicyUnreachable):
        await probe(ReplicaPool(["http://127.0.0.1:9/v1"]))


async def test_servers_with_another_tokenizer_than_the_one_that_trains_are_refused(
    served: str,
) -> None:
    renderer = renderer_of(SEED_POLICY)
    await check_tokenizer(pool_at(served), "policy", renderer)
    renderer.tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(BadInput, match="other tokens of the same messages"):
        await check_tokenizer(pool_at(served), "policy", renderer)
