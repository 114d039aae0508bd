"""What a policy server must do for us. The embedded engine passes it; any vLLM has to as well."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stateset_agents.engine_client import load_adapter, served_models, unload_adapter
from stateset_agents.errors import PolicyUnreachable
from stateset_agents.jobs import SEED_POLICY
from stateset_agents.server.engine import protocol
from stateset_agents.server.engine.app import Engine, build
from stateset_agents.server.engine.models import load_base
from stateset_agents.tools.prompts import SERVICE_PROMPT
from stateset_agents.tools.toolset import SERVICE_TOOLS

TOOLS: Any = [tool.schema() for tool in SERVICE_TOOLS]
MESSAGES: Any = [
    {"role": "system", "content": SERVICE_PROMPT},
    {"role": "user", "content": "Where is my order? My order is W39841. My zip is 62169."},
]


async def post(url: str, path: str, body: Any, status: int = 200) -> Any:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}{path}", json=body) as answer,
    ):
        assert answer.status == status, await answer.text()
        assert answer.headers["x-request-id"]
        return await answer.json() if "json" in answer.headers["content-type"] else None


async def ask(url: str, **options: Any) -> Any:
    body = {"model": "policy", "messages": MESSAGES, "tools": TOOLS, "logprobs": True,
            "return_token_ids": True, "max_tokens": 60, "temperature": 0.0, **options}  # fmt: skip
    return await post(url, "/chat/completions", body)


def plain_logprobs(
    prompt: list[int], sampled: list[int], adapter: Path | None = None
) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(SEED_POLICY, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0]
    every = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return every.gather(1, torch.tensor(sampled)[:, None]).squeeze(1)


def reported(answer: Any) -> torch.Tensor:
    return torch.tensor([e["logprob"] for e in answer["choices"][0]["logprobs"]["content"]])


async def test_ids_and_log_probabilities_are_those_of_transformers(engine: str) -> None:
    answer = await ask(engine)
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    text = tokenizer.apply_chat_template(
        MESSAGES, tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert answer["prompt_token_ids"] == tokenizer.encode(text, add_special_tokens=False)
    sampled = answer["choices"][0]["token_ids"]
    wanted = plain_logprobs(answer["prompt_token_ids"], sampled)
    torch.testing.assert_close(reported(answer), wanted, rtol=0, atol=1e-4)


async def test_a_tool_call_is_read_and_rendered_again_as_it_was_sampled(engine: str) -> None:
    answer = await ask(engine)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "verify_identity"
    tool = {"role": "tool", "tool_call_id": call["id"], "content": "{}"}
    later = await ask(engine, messages=[*MESSAGES, choice["message"], tool], max_tokens=4)
    before = [*answer["prompt_token_ids"], *choice["token_ids"]]
    assert later["prompt_token_ids"][: len(before)] == before
    assert later["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(before) - 1


async def test_a_cached_prefix_changes_no_log_probability(engine: str) -> None:
    first, again = await ask(engine), await ask(engine)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    torch.testing.assert_close(reported(first), reported(again), rtol=0, atol=1e-4)


async def test_a_seed_repeats_and_another_one_does_not(engine: str) -> None:
    answers = [await ask(engine, temperature=2.0, seed=seed) for seed in (1, 1, 2, 3, 4, 5)]
    ids = [tuple(answer["choices"][0]["token_ids"]) for answer in answers]
    assert ids[0] == ids[1]
    assert len(set(ids)) > 1


async def test_log_probabilities_are_of_the_distribution_that_was_sampled(engine: str) -> None:
    answer = await ask(engine, temperature=0.6, seed=3)
    model = AutoModelForCausalLM.from_pretrained(SEED_POLICY, dtype=torch.float32)
    prompt, sampled = answer["prompt_token_ids"], answer["choices"][0]["token_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0] / 0.6
    every = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    wanted = every.gather(1, torch.tensor(sampled)[:, None]).squeeze(1)
    torch.testing.assert_close(reported(answer), wanted, rtol=0, atol=2e-4)


async def test_many_at_once_answer_as_each_alone(engine: str) -> None:
    def prompt(number: int) -> list[dict[str, str]]:
        return [MESSAGES[0], {"role": "user", "content": "Where is my order? " * (1 + number % 5)}]

    alone = [await ask(engine, messages=prompt(n), max_tokens=20) for n in range(5)]
    together = await asyncio.gather(
        *(ask(engine, messages=prompt(n), max_tokens=20) for n in range(30))
    )
    for number, answer in enumerate(together):
        same = alone[number % 5]
        assert answer["choices"][0]["token_ids"] == same["choices"][0]["token_ids"]
        torch.testing.assert_close(reported(answer), reported(same), rtol=0, atol=1e-4)


async def test_a_stream_carries_the_same_tokens_text_and_calls(engine: str) -> None:
    whole = await ask(engine)
    async with openai.AsyncOpenAI(base_url=engine, api_key="EMPTY") as client:
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
    assert calls[0].function is not None
    assert json.loads(calls[0].function.arguments or "") == json.loads(wanted["arguments"])
    assert raw[-1]["usage"]["completion_tokens"] == len(ids)


async def test_stop_strings_and_token_limits_end_an_answer(engine: str) -> None:
    stopped = await ask(engine, stop=["verify"])
    assert "verify" in stopped["choices"][0]["message"]["content"]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert len(stopped["choices"][0]["token_ids"]) < len(
        (await ask(engine))["choices"][0]["token_ids"]
    )
    short = await ask(engine, max_tokens=3)
    assert short["choices"][0]["finish_reason"] == "length"
    assert len(short["choices"][0]["token_ids"]) == 3


async def test_completions_take_token_ids(engine: str) -> None:
    chat = await ask(engine)
    body = {"model": "policy", "prompt": chat["prompt_token_ids"], "max_tokens": 60, "temperature": 0.0,
            "return_token_ids": True, "logprobs": 1}  # fmt: skip
    answer = await post(engine, "/completions", body)
    assert answer["choices"][0]["token_ids"] == chat["choices"][0]["token_ids"]
    assert (
        len(answer["choices"][0]["logprobs"]["token_logprobs"])
        == answer["usage"]["completion_tokens"]
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/chat/completions", {"model": "nobody", "messages": MESSAGES}, 404, "model_not_found"),
        ("/chat/completions", {"messages": []}, 400, "invalid_value"),
        ("/chat/completions", {"messages": [{"role": "robot"}]}, 400, "invalid_value"),
        ("/chat/completions", {"messages": MESSAGES, "temperature": -1}, 400, "invalid_value"),
        ("/chat/completions", {"messages": MESSAGES, "n": 2}, 400, "invalid_value"),
        ("/chat/completions", {"messages": [{"role": "user", "content": "a b " * 3000}]}, 400, "context_length_exceeded"),
        ("/completions", {"prompt": [10**9]}, 400, "invalid_value"),
        ("/chat/completions", [1, 2], 400, "invalid_json"),
        ("/load_lora_adapter", {"lora_name": "x", "lora_path": "/nowhere"}, 400, "bad_adapter"),
        ("/unload_lora_adapter", {"lora_name": "nobody"}, 404, "adapter_not_found"),
    ],
)  # fmt: skip
async def test_errors_have_openais_shape(
    engine: str, path: str, body: Any, status: int, code: str
) -> None:
    error = (await post(engine, path, body, status))["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}


def an_adapter(folder: Path, base: str, *, scale: float = 0.05) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    lora.save_pretrained(str(folder))
    return folder


async def test_an_adapter_is_served_beside_the_base_and_dropped(
    engine: str, tmp_path: Path
) -> None:
    adapter = an_adapter(tmp_path / "adapter", str(SEED_POLICY))
    await load_adapter(engine, "tuned", adapter)
    assert await served_models(engine) == ["policy", "tuned"]
    before, tuned = await asyncio.gather(ask(engine), ask(engine, model="tuned"))
    assert tuned["model"] == "tuned"
    sampled = tuned["choices"][0]["token_ids"]
    wanted = plain_logprobs(tuned["prompt_token_ids"], sampled, adapter)
    torch.testing.assert_close(reported(tuned), wanted, rtol=0, atol=1e-4)
    with pytest.raises(PolicyUnreachable, match="loaded already"):
        await load_adapter(engine, "tuned", adapter)
    await unload_adapter(engine, "tuned")
    after = await ask(engine)
    torch.testing.assert_close(reported(before), reported(after), rtol=0, atol=1e-4)


async def test_an_adapter_of_another_base_is_refused(engine: str, tmp_path: Path) -> None:
    model, _ = load_base(str(SEED_POLICY))
    model.config.hidden_size *= 2
    other = type(model)(model.config)
    other.save_pretrained(tmp_path / "other")
    adapter = an_adapter(tmp_path / "adapter", str(tmp_path / "other"))
    with pytest.raises(PolicyUnreachable, match="does not fit"):
        await load_adapter(engine, "misfit", adapter)
    assert (await ask(engine))["choices"]


async def test_a_client_that_leaves_frees_its_place(engine: str) -> None:
    body = {"model": "policy", "messages": MESSAGES, "max_tokens": 1800, "ignore_eos": True}
    root = engine.removesuffix("/v1")
    async with aiohttp.ClientSession() as session:

        async def stats() -> dict[str, int]:
            async with session.get(f"{root}/stats") as answer:
                found: dict[str, int] = await answer.json()
                return found

        before = await stats()
        asking = asyncio.create_task(session.post(f"{engine}/chat/completions", json=body))
        while (await stats())["tokens_sampled"] < before["tokens_sampled"] + 10:
            await asyncio.sleep(0.02)
        asking.cancel()
        while (await stats())["running"]:
            await asyncio.sleep(0.02)
        assert (await stats())["tokens_sampled"] < before["tokens_sampled"] + 1500


def test_text_that_is_no_valid_call_stays_text() -> None:
    for text in (
        "<tool_call>{bad}</tool_call>",
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"zip": 99999999999999999999999}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"amount": NaN}}</tool_call>',
        "hi",
    ):
        assert protocol.read_answer(text) == (text, [])
    assert protocol.visible("Wait.<tool_c") == "Wait."
    assert protocol.visible("a < b") == "a < b"


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


async def test_a_dropped_adapters_cache_is_not_used_by_its_successor(
    engine: str, tmp_path: Path
) -> None:
    for number, scale in enumerate((0.05, 0.1)):
        adapter = an_adapter(tmp_path / str(number), str(SEED_POLICY), scale=scale)
        await load_adapter(engine, "same-name", adapter)
        answer = await ask(engine, model="same-name")
        sampled = answer["choices"][0]["token_ids"]
        wanted = plain_logprobs(answer["prompt_token_ids"], sampled, adapter)
        torch.testing.assert_close(reported(answer), wanted, rtol=0, atol=1e-4)
        await unload_adapter(engine, "same-name")
