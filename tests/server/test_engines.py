"""What a policy server must do for us: the embedded engine and a real vLLM, by the same tests."""

import asyncio
import json
from typing import Any

import aiohttp
import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stateset_agents.errors import ContextFull, PolicyRefused
from stateset_agents.policy.capabilities import probe
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.metrics import read_metrics
from stateset_agents.policy.pool import ReplicaPool, pool_at
from stateset_agents.policy.tool_readers import HERMES, read_hermes
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.server.engine.app import build
from stateset_agents.server.engine.engine import Engine
from stateset_agents.server.engine.models import load_base
from tests.engine_client import MESSAGES, TOOLS, ask, plain_logprobs, post, reported


async def test_ids_and_log_probabilities_are_those_of_transformers(served: str) -> None:
    answer = await ask(served)
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    text = tokenizer.apply_chat_template(
        MESSAGES, tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert answer["prompt_token_ids"] == tokenizer.encode(text, add_special_tokens=False)
    sampled = answer["choices"][0]["token_ids"]
    wanted = plain_logprobs(answer["prompt_token_ids"], sampled)
    torch.testing.assert_close(reported(answer), wanted, rtol=0, atol=1e-3)


async def test_a_tool_call_is_read_and_rendered_again_as_it_was_sampled(served: str) -> None:
    answer = await ask(served)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "verify_identity"
    tool = {"role": "tool", "tool_call_id": call["id"], "content": "{}"}
    later = await ask(served, messages=[*MESSAGES, choice["message"], tool], max_tokens=4)
    before = [*answer["prompt_token_ids"], *choice["token_ids"]]
    assert later["prompt_token_ids"][: len(before)] == before
    # vLLM shares whole blocks, of 32 tokens here.
    shared = (len(before) - 1) // 32 * 32
    assert later["usage"]["prompt_tokens_details"]["cached_tokens"] >= shared


async def test_a_prompt_may_come_as_ids_beside_its_messages(served: str) -> None:
    """What was sampled goes back as it was, however the messages would be rendered."""
    answer = await ask(served)
    ids = [*answer["prompt_token_ids"][:-3], 5, 6, 7]
    again = await ask(served, kv_transfer_params={"prompt_token_ids": ids}, max_tokens=4)
    assert again["prompt_token_ids"] == ids
    wanted = plain_logprobs(ids, again["choices"][0]["token_ids"])
    torch.testing.assert_close(reported(again), wanted, rtol=0, atol=1e-3)
    root = served.removesuffix("/v1")
    rendered = await post(
        root, "/tokenize", {"model": "policy", "messages": MESSAGES, "tools": TOOLS}
    )
    assert rendered["tokens"] == answer["prompt_token_ids"]


async def test_a_cached_prefix_changes_no_log_probability(served: str) -> None:
    first, again = await ask(served), await ask(served)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    torch.testing.assert_close(reported(first), reported(again), rtol=0, atol=1e-3)


async def test_a_seed_repeats_and_another_one_does_not(served: str) -> None:
    answers = [await ask(served, temperature=2.0, seed=seed) for seed in (1, 1, 2, 3, 4, 5)]
    ids = [tuple(answer["choices"][0]["token_ids"]) for answer in answers]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 5


async def test_a_seed_means_nothing_to_another_engine(engine: str, served: str) -> None:
    if served == engine:
        return
    options: Any = {"temperature": 2.0, "max_tokens": 60, "ignore_eos": True}
    for seed in range(3):
        part, other = [await ask(url, seed=seed, **options) for url in (engine, served)]
        assert part["choices"][0]["token_ids"] != other["choices"][0]["token_ids"]


async def test_log_probabilities_are_of_the_distribution_that_was_sampled(served: str) -> None:
    answer = await ask(served, temperature=0.6, seed=3)
    model = AutoModelForCausalLM.from_pretrained(SEED_POLICY, dtype=torch.float32)
    prompt, sampled = answer["prompt_token_ids"], answer["choices"][0]["token_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0] / 0.6
    every = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    wanted = every.gather(1, torch.tensor(sampled)[:, None]).squeeze(1)
    torch.testing.assert_close(reported(answer), wanted, rtol=0, atol=1e-3)


async def test_many_at_once_answer_as_each_alone(served: str) -> None:
    def prompt(number: int) -> list[dict[str, str]]:
        return [MESSAGES[0], {"role": "user", "content": "Where is my order? " * (1 + number % 5)}]

    alone = [await ask(served, messages=prompt(n), max_tokens=20) for n in range(5)]
    together = await asyncio.gather(
        *(ask(served, messages=prompt(n), max_tokens=20) for n in range(30))
    )
    for number, answer in enumerate(together):
        same = alone[number % 5]
        assert answer["choices"][0]["token_ids"] == same["choices"][0]["token_ids"]
        torch.testing.assert_close(reported(answer), reported(same), rtol=0, atol=1e-3)


async def test_a_stream_carries_the_same_tokens_text_and_calls(served: str) -> None:
    whole = await ask(served)
    async with openai.AsyncOpenAI(base_url=served, api_key="EMPTY") as client:
        stream = await client.chat.completions.create(
            model="policy", messages=MESSAGES, tools=TOOLS, temperature=0.0, max_tokens=60, stream=True,
            logprobs=True, stream_options={"include_usage": True}, extra_body={"return_token_ids": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
    raw = [chunk.model_dump() for chunk in chunks]
    ids = [i for c in raw for choice in c["choices"] for i in choice.get("token_ids") or []]
    assert ids == whole["choices"][0]["token_ids"]
    assert (
        next(c["prompt_token_ids"] for c in raw if c.get("prompt_token_ids"))
        == whole["prompt_token_ids"]
    )
    calls = [call for c in chunks for x in c.choices for call in x.delta.tool_calls or []]
    wanted = whole["choices"][0]["message"]["tool_calls"][0]["function"]
    functions = [call.function for call in calls if call.function]
    assert "".join(part.name or "" for part in functions) == wanted["name"]
    arguments = "".join(part.arguments or "" for part in functions)
    assert json.loads(arguments) == json.loads(wanted["arguments"])
    assert raw[-1]["usage"]["completion_tokens"] == len(ids)


async def test_stop_strings_and_token_limits_end_an_answer(served: str) -> None:
    stopped = await ask(served, stop=["verify"])
    assert stopped["choices"][0]["message"]["content"] == '<tool_call>{"name": "'
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert len(stopped["choices"][0]["token_ids"]) < len(
        (await ask(served))["choices"][0]["token_ids"]
    )
    async with openai.AsyncOpenAI(base_url=served, api_key="EMPTY") as client:
        stream = await client.chat.completions.create(
            model="policy", messages=MESSAGES, max_tokens=20, stop=["you", "I"], stream=True, temperature=0.0
        )  # fmt: skip
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    whole = await ask(served, tools=None, max_tokens=20, stop=["you", "I"])
    assert text == (whole["choices"][0]["message"]["content"] or "")
    short = await ask(served, max_tokens=3)
    assert short["choices"][0]["finish_reason"] == "length"
    assert len(short["choices"][0]["token_ids"]) == 3


async def test_completions_take_token_ids(served: str) -> None:
    chat = await ask(served)
    body = {"model": "policy", "prompt": chat["prompt_token_ids"], "max_tokens": 60, "temperature": 0.0,
            "return_token_ids": True, "logprobs": 1}  # fmt: skip
    answer = await post(served, "/completions", body)
    assert answer["choices"][0]["token_ids"] == chat["choices"][0]["token_ids"]
    assert (
        len(answer["choices"][0]["logprobs"]["token_logprobs"])
        == answer["usage"]["completion_tokens"]
    )


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/chat/completions", {"model": "nobody", "messages": MESSAGES}, {404}),
        ("/chat/completions", {"messages": []}, {400}),
        ("/chat/completions", {"messages": MESSAGES, "temperature": -1}, {400}),
        ("/chat/completions", {"messages": [{"role": "user", "content": "a b " * 3000}]}, {400}),
        ("/chat/completions", {"messages": MESSAGES, "kv_transfer_params": {"prompt_token_ids": [10**9]}}, {400}),
        ("/completions", {"prompt": [10**9]}, {400}),
        ("/chat/completions", [1, 2], {400}),
        ("/load_lora_adapter", {"lora_name": "x", "lora_path": "/nowhere"}, {400, 404}),
        ("/unload_lora_adapter", {"lora_name": "nobody"}, {404}),
    ],
)  # fmt: skip
async def test_errors_have_openais_shape(
    served: str, path: str, body: Any, status: set[int]
) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{served}{path}", json=body) as answer,
    ):
        assert answer.status in status, await answer.text()
        error = (await answer.json())["error"]
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"messages": [{"role": "robot"}]}, "unsupported_value"),
        ({"messages": MESSAGES, "n": 2}, "unsupported_value"),
        ({"messages": [{"role": "user", "content": "a b " * 3000}]}, "context_length_exceeded"),
    ],
)
async def test_the_engine_refuses_what_it_cannot_do(engine: str, body: Any, code: str) -> None:
    error = (await post(engine, "/chat/completions", body, 400))["error"]
    assert error["code"] == code


async def test_what_a_server_refuses_is_typed(served: str) -> None:
    policy = connect(served, "policy")
    with pytest.raises(ContextFull, match="maximum context length"):
        await policy.ainvoke("a b " * 3000)
    with pytest.raises(PolicyRefused, match="nobody"):
        await connect(served, "nobody").ainvoke("hello")


async def test_a_server_is_asked_what_it_can_do(served: str) -> None:
    able = await probe(pool_at(served), adapters=True)
    assert (able.model, able.adapters, able.tokenizes) == ("policy", True, True)
    assert able.prompt_ids


async def test_a_client_that_leaves_frees_its_place(served: str) -> None:
    body = {"model": "policy", "messages": MESSAGES, "max_tokens": 1800, "ignore_eos": True}
    servers = ReplicaPool([served])
    before = await read_metrics(servers)
    asking = asyncio.create_task(servers.post("/chat/completions", body))
    while (await read_metrics(servers)).sampled < before.sampled + 10:
        await asyncio.sleep(0.02)
    asking.cancel()
    while (await read_metrics(servers)).running:
        await asyncio.sleep(0.02)
    assert (await read_metrics(servers)).sampled < before.sampled + 1500


def test_text_that_is_no_valid_call_stays_text() -> None:
    for text in (
        "<tool_call>{bad}</tool_call>",
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"zip": 99999999999999999999999}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"amount": NaN}}</tool_call>',
        "hi",
    ):
        assert read_hermes(text) == (text, [])
    assert HERMES.visible("Wait.<tool_c") == "Wait."
    assert HERMES.visible("a < b") == "a < b"


async def test_an_engine_that_breaks_says_so_and_keeps_nobody_waiting() -> None:
    model, tokenizer = load_base(str(SEED_POLICY))
    engine = Engine(model, tokenizer, "policy", slots=4)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    model.forward = broken
    transport = httpx.ASGITransport(app=build(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        body = {"model": "policy", "messages": MESSAGES, "max_tokens": 5}
        for _ in range(2):
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 500
            assert "out of memory" in answer.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 503
