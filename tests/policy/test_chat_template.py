"""A chat template that leaves out tools is found out before a model is asked about what it cannot see."""

import shutil
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
from stateset_agents.policy.rendering import Renderer, call_of, readable, renderer_of
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.server.engine.app import build
from stateset_agents.server.engine.engine import Engine
from stateset_agents.server.engine.models import load_base
from stateset_agents.server.options import ServerOptions, VllmOptions
from stateset_agents.server.vllm import process as vllm
from tests.command_line import run
from tests.engine_client import MESSAGES, TOOLS
from tests.servers import Running

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As of many small pretrained models: roles and contents, nothing else."""
STRICT = "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + PLAIN
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant take turns') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Gemma's and Mistral's first ones."""
ONLY_USERS = (
    "{% for m in messages if m.role != 'tool' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


def tokenizer_with(template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "hidden"),
    [
        (default_chat_template(), set()),
        (PLAIN, {"tools", "tool calls"}),
        (STRICT, {"tools", "tool calls", "tool answers"}),
        (ONLY_USERS, {"tools", "tool calls", "tool answers"}),
        (NO_SYSTEM, {"tools", "tool calls", "tool answers", "system text"}),
    ],
)
def test_what_a_template_hides_is_told_in_words(template: str, hidden: set[str]) -> None:
    tokenizer = tokenizer_with(template)

    def render(messages: Any, tools: Any) -> str:
        given = [readable(message) for message in messages]
        return str(
            tokenizer.apply_chat_template(
                given, tools=tools, tokenize=False, add_generation_prompt=True
            )
        )

    assert hidden_by(render) == hidden
    renderer = Renderer(tokenizer)
    assert renderer.in_words == bool(hidden)
    assert hidden_by(render) == set()  # the tokenizer's template is whole now
    call = call_of("verify_identity", '{"order_id": "W1", "zip": "12345"}')
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "One moment.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": '{"ok": true}'},
    ]
    text = tokenizer.decode(renderer.prompt(messages, TOOLS))
    for part in ("Be brief.", "verify_identity(", "One moment.", '"W1"', '{"ok": true}'):
        assert part in text, text


def test_the_seed_policys_template_shows_tools_without_a_system_message_too() -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(SEED_POLICY))
    user = [{"role": "user", "content": "Hi"}]
    bare = {"type": "function", "function": {"name": "ping"}}
    text = renderer.tokenizer.decode(renderer.prompt(user, [*TOOLS, bare]))
    assert "verify_identity(order_id, zip)" in text
    assert "ping()" in text


@pytest.fixture
def toolless(tmp_path: Path) -> Path:
    """The seed policy with a template that shows no tools."""
    folder = tmp_path / "model"
    shutil.copytree(SEED_POLICY, folder)
    (folder / "chat_template.jinja").write_text(PLAIN)
    return folder


async def test_a_model_whose_template_knows_no_tools_is_told_of_them_all_the_same(
    toolless: Path,
) -> None:
    model, renderer = load_base(str(toolless))
    engine = Engine(model, renderer, "policy", slots=4)
    transport = httpx.ASGITransport(app=build(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        prompts = []
        for tools in (None, TOOLS):
            given: dict[str, Any] = {"messages": MESSAGES, **({"tools": tools} if tools else {})}
            answer = await client.post("/tokenize", json=given)
            prompts.append(renderer.tokenizer.decode(answer.json()["tokens"]))
        assert "verify_identity(" in prompts[1]
        assert "verify_identity(" not in prompts[0]
    engine.batcher.close()


async def test_a_server_that_says_nothing_is_found_out_by_its_prompts(toolless: Path) -> None:
    model, renderer = load_base(str(toolless))
    renderer.tokenizer.chat_template = (
        PLAIN  # as a vLLM of somebody else's: it renders what the template makes of it
    )
    engine = Engine(model, renderer, "policy", slots=4)
    async with Running(build(engine)) as url:
        pool = ReplicaPool([url])
        await probe(pool)
        assert pool.hides == {"tools", "tool calls"}
        policy = policy_of(pool, "policy")
        assert (await policy.ainvoke("Hello", max_tokens=1)).response_metadata
        with pytest.raises(PolicyRefused, match="leaves out tools"):
            await policy.ainvoke("Hello", tools=TOOLS)


def test_a_dry_run_says_that_tools_are_told_in_words(toolless: Path, tmp_path: Path) -> None:
    printed = run("train", "--model", str(toolless), "--dry-run", cwd=tmp_path)
    assert "tools are told in words" in printed
    assert "nothing is missing" in printed


def test_both_engines_get_the_same_template(toolless: Path, tmp_path: Path) -> None:
    """vLLM is started with the very template that the trainer and the embedded engine use, and the reader of its calls."""
    own = VllmOptions(python=Path("python"), folder=tmp_path, rank=8)
    command = vllm.launch(str(toolless), ServerOptions(port=1), own).command
    template = Path(command[command.index("--chat-template") + 1]).read_text()
    assert template == renderer_of(toolless).tokenizer.chat_template
    assert command[command.index("--tool-call-parser") + 1] == "hermes"
