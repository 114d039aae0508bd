"""A chat template that leaves out tools is found out before a model is asked about what it cannot see."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from stateset_agents.errors import PolicyRefused
from stateset_agents.policy.capabilities import probe
from stateset_agents.policy.chat_model import policy_of
from stateset_agents.policy.chat_template import default_chat_template, hidden_by
from stateset_agents.policy.pool import ReplicaPool
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.server.engine import protocol
from stateset_agents.server.engine.app import build
from stateset_agents.server.engine.engine import Engine
from stateset_agents.server.engine.models import load_base
from tests.command_line import run
from tests.engine_client import MESSAGES, TOOLS
from tests.servers import Running

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As of many small pretrained models: roles and contents, nothing else."""
STRICT = "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + PLAIN
ONLY_USERS = (
    "{% for m in messages if m.role != 'tool' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "hidden"),
    [
        (default_chat_template(), set()),
        (PLAIN, {"tools", "tool calls"}),
        (STRICT, {"tools", "tool calls", "tool answers"}),
        (ONLY_USERS, {"tools", "tool calls", "tool answers"}),
    ],
)
def test_what_a_template_hides(template: str, hidden: set[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    tokenizer.chat_template = template
    assert hidden_by(partial(protocol.render, tokenizer)) == hidden


def test_the_seed_policys_template_shows_tools_without_a_system_message_too() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    user = [{"role": "user", "content": "Hi"}]
    bare = {"type": "function", "function": {"name": "ping"}}
    text = tokenizer.decode(protocol.render(tokenizer, user, [*TOOLS, bare]))
    assert "verify_identity(order_id, zip)" in text
    assert "ping()" in text


@pytest.fixture
def toolless(tmp_path: Path) -> Path:
    """The seed policy with a template that shows no tools."""
    folder = tmp_path / "model"
    shutil.copytree(SEED_POLICY, folder)
    (folder / "chat_template.jinja").write_text(PLAIN)
    return folder


async def test_the_engine_refuses_tools_that_its_model_would_not_see(toolless: Path) -> None:
    model, tokenizer = load_base(str(toolless))
    engine = Engine(model, tokenizer, "policy", slots=4)
    transport = httpx.ASGITransport(app=build(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine/v1") as client:
        body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 1}
        assert (await client.post("/chat/completions", json=body)).status_code == 200
        for path in ("/chat/completions", "/tokenize"):
            base = "http://engine" if path == "/tokenize" else ""
            given = {"messages": MESSAGES, "tools": TOOLS}
            answer = await client.post(f"{base}{path}", json=given)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "template_without_tools"
    engine.batcher.close()


async def test_a_server_that_says_nothing_is_found_out_by_its_prompts(toolless: Path) -> None:
    model, tokenizer = load_base(str(toolless))
    engine = Engine(model, tokenizer, "policy", slots=4)
    engine.hides = frozenset()  # as vLLM: it renders what the template makes of it
    async with Running(build(engine)) as url:
        pool = ReplicaPool([url])
        await probe(pool)
        assert pool.hides == {"tools", "tool calls"}
        policy = policy_of(pool, "policy")
        assert (await policy.ainvoke("Hello", max_tokens=1)).response_metadata
        with pytest.raises(PolicyRefused, match="leaves out tools"):
            await policy.ainvoke("Hello", tools=TOOLS)


def test_a_dry_run_names_it(toolless: Path, tmp_path: Path) -> None:
    error = run("train", "--model", str(toolless), status=2, cwd=tmp_path)
    assert "chat template that shows tools" in error
    assert not (tmp_path / "runs").exists()
