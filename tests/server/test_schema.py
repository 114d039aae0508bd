"""Whatever a client sends, it gets an answer in OpenAI's shape: no 5xx, no reset connection, nothing ignored."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act
from stateset_agents.tools.shop.generate import generate
from tests.engine_client import MESSAGES, TOOLS
from tests.server.test_app import app_with
from tests.servers import Running

MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A served graph whose policy says one sentence."""
    shop = generate(1, "train").clone()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    running = Running(app_with(Oracle(plan=(Act(say="Hello!"),) * 50), shop))
    yield asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result(30)
    asyncio.run_coroutine_threadsafe(running.__aexit__(None, None, None), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["engine", "endpoint"])
def server(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.mark.parametrize("mode", MODES, ids=["valid", "invalid"])
def test_nothing_that_is_sent_breaks_a_server(server: str, mode: GenerationMode) -> None:
    root = server.removesuffix("/v1")
    with httpx.Client(base_url=root, timeout=60) as client:
        described = client.get("/openapi.json").json()
        assert any("requestBody" in op for p in described["paths"].values() for op in p.values())
        schema = schemathesis.openapi.from_dict(described)
        results: Any = schema.get_all_operations()
        for result in results:
            operation = result.ok()

            @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                body = case.body
                if isinstance(body, dict) and ("messages" in body or "prompt" in body):
                    body = {**body, "max_tokens": body.get("max_tokens", 1)}
                content = (
                    None if body is schemathesis.core.NOT_SET else json.dumps(body, default=str)
                )
                answer = client.request(case.method, case.formatted_path, content=content)
                assert answer.status_code < 500, answer.text
                if answer.status_code >= 400:
                    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

            if mode is GenerationMode.POSITIVE or operation.body:
                check()


DEEP = "[" * 100_000 + "]" * 100_000
BODIES = [
    '{"model": "service", "messages": ' + DEEP + "}",
    DEEP,
    "",
    "null",
    "[1, 2]",
    '{"model": "service", "messages": [], "seed": 1' + "0" * 400 + "}",
    '{"model": "service", "messages": [], "seed": 1' + "0" * 5000 + "}",
    '{"model": "service", "messages": [{"role": "user", "content": "\\ud800"}]}',
    '{"model": "service", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    "\ud800".encode("utf-8", "surrogatepass"),
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_bodies_that_are_no_requests_are_refused(server: str, body: str | bytes) -> None:
    with httpx.Client(base_url=server, timeout=60) as client:
        for _ in range(2):  # the connection is still there
            answer = client.post("/chat/completions", content=body)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": 5}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"model": ["policy"]}, "model"),
        ({"temperature": 99}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"guided_json": {}}, "guided_json"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"min_tokens": 4}, "min_tokens"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": True}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function"}]}, *HELLO]},
            "messages.0.tool_calls.0.function",
        ),
        ({"functions": []}, "functions"),
        ({"store": True}, "store"),
        ({"priority": 3}, "priority"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)  # fmt: skip
def test_what_a_server_does_not_do_it_refuses_by_name(
    server: str, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "service", "messages": HELLO, **fields}
    answer = httpx.post(f"{server}/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert param.startswith(error["param"])
    assert error["param"] in error["message"]


def test_tools_of_the_client_are_refused_by_the_endpoint_and_can_be_hidden_from_the_engine(
    endpoint: str, engine: str
) -> None:
    body = {"model": "service", "messages": HELLO, "tools": TOOLS}
    answer = httpx.post(f"{endpoint}/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    counts = [
        httpx.post(
            f"{engine}/chat/completions",
            json={"messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, "max_tokens": 1},
            timeout=60,
        ).json()["usage"]["prompt_tokens"]
        for choice in ("auto", "none")
    ]
    assert counts[0] > counts[1]


def test_an_engine_loads_adapters_only_from_its_folders(engine: str) -> None:
    from stateset_agents.policy.weight_files import SEED_POLICY
    from stateset_agents.server.engine.engine import Engine
    from stateset_agents.server.engine.models import load_base
    from stateset_agents.server.http import Refusal

    model, tokenizer = load_base(str(SEED_POLICY))
    alone = Engine(model, tokenizer, "policy", slots=2, adapters_from=[SEED_POLICY])
    alone.check_folder(str(SEED_POLICY / "adapter"))
    for place in ("/etc", f"{SEED_POLICY}/../..", "a\0b"):
        with pytest.raises(Refusal, match="--adapters-from"):
            alone.check_folder(place)
    alone.batcher.close()
