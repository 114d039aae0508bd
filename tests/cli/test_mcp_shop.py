"""Somebody else's shop over MCP by the command line: which tools are offered and ask, and that no episode and no conversation sees
another's server."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from stateset_agents.errors import BadInput
from stateset_agents.jobs import mcp_shop
from stateset_agents.jobs.config import JobConfig, check_config
from stateset_agents.jobs.mcp_shop import listed
from stateset_agents.jobs.registry import find_rollout
from stateset_agents.jobs.served_graphs import mcp_graph
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act, Customer, Goal, Scenario
from stateset_agents.server.app import build
from stateset_agents.tools.tool import Session
from stateset_agents.trace import Sampling
from tests.command_line import run
from tests.servers import Running

TILL = Path(__file__).parents[1] / "tools" / "mcp_till.py"
SIGN_IN = Act(tool="sign_in", arguments={"name": "Ann"})
LOOK = Act(tool="get_balance")
PAY = Act(tool="pay_back", arguments={"order": "W1"})


def config_of(log: Path, **fields: Any) -> JobConfig:
    chosen: dict[str, Any] = {
        "mcp": f"{sys.executable} {TILL} {log}", "tools": ("sign_in", "get_*", "pay_*"), "read": ("sign_in", "get_*"),
        "inject": {"key": "key"},
    }  # fmt: skip
    return check_config({**chosen, **fields})


def scenario(*acts: Act) -> Scenario:
    return Scenario(
        id="s", plan=acts, customer=Customer(opening="Pay W1 back.", approves=(PAY,)), goal=Goal(consulted=(("pay_back",),))
    )  # fmt: skip


async def test_every_episode_has_a_server_of_its_own_and_its_writes_ask(tmp_path: Path) -> None:
    rollout = find_rollout(config_of(tmp_path / "log"))
    plan = (SIGN_IN, LOOK, PAY, Act(say="It is done."))
    for _ in range(2):
        trace = await rollout(scenario(*plan), Oracle(plan=plan), Sampling())
        assert (trace.status, trace.error) == ("completed", None)
        assert [(c.name, c.status) for c in trace.tool_calls] == [
            ("sign_in", "done"), ("get_balance", "done"), ("pay_back", "done"),
        ]  # fmt: skip
        assert trace.tool_calls[1].result == {"customer": "Ann", "refunded": []}
        assert trace.goal_score is not None
        assert trace.goal_score.success
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [words[1] for words in lines] == ["sign_in", "pay_back"] * 2
    assert len({words[0] for words in lines}) == 2
    assert all(len(words) == 4 for words in lines if words[1] == "pay_back")  # a key was filled in


async def test_no_conversation_is_signed_in_as_another(tmp_path: Path) -> None:
    async with mcp_graph(config_of(tmp_path / "log"), guard=False, approvals=False) as graph:
        policies = {
            "ann": Oracle(plan=(SIGN_IN, LOOK, Act(say="You are Ann."))),
            "bob": Oracle(plan=(LOOK, Act(say="I do not know you."))),
        }
        results = {}
        for name, policy in policies.items():
            served = graph.served(policy, None)  # type: ignore[arg-type]
            async with (
                Running(build({"service": served}, key=None)) as url,
                httpx.AsyncClient(base_url=url, timeout=60) as client,
            ):
                body = {"model": "service", "messages": [{"role": "user", "content": "hello"}]}
                answer = await client.post("/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                results[name] = answer.json()["choices"][0]["message"]["content"]
    assert results == {"ann": "You are Ann.", "bob": "I do not know you."}
    backends = list(graph.shop._open.values())
    assert len(backends) == 2


async def test_a_conversation_whose_server_was_closed_is_told_to_sign_in_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_shop, "OPEN", 1)
    talks = mcp_shop.Conversations(await listed(config_of(tmp_path / "log")))
    session = Session(customer="")
    ann = talks.of("ann")
    assert (await ann.act(session, "sign_in", {"name": "Ann"}, None)).status == "done"
    bob = talks.of("bob")  # ann's server is closed
    assert (await bob.act(session, "get_balance", {}, None)).result["customer"] is None
    late = await asyncio.wait_for(
        ann.act(session, "get_balance", {}, None), 20
    )  # her turn is still under way
    assert late.status == "done"
    again = talks.of("ann", goes_on=True)
    lost = await again.act(session, "get_balance", {}, None)
    assert lost.result["error"] == "session_lost"
    assert (await again.act(session, "get_balance", {}, None)).result["customer"] is None
    await talks.close()
    await ann.close()


async def test_a_server_or_a_pattern_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="MCP server that answers"):
        await listed(config_of(tmp_path / "log", mcp="no-such-program --at all"))
    with pytest.raises(BadInput, match=r"find_\*"):
        await listed(config_of(tmp_path / "log", read=("find_*",)))
    for fields, name in (
        ({"read": ("x",)}, "--read"),
        ({"mcp": "x", "graph": "orchestrator"}, "--mcp"),
    ):
        with pytest.raises(BadInput, match=name):
            check_config(fields)


def test_a_dry_run_says_which_tools_ask(tmp_path: Path) -> None:
    scenarios = tmp_path / "s.json"
    scenarios.write_text(json.dumps([{"id": "a", "prompt": "hello"}]))
    printed = run(
        "evaluate", "--mcp", f"{sys.executable} {TILL} {tmp_path / 'log'}", "--read", "get_*", "--inject", "key=key",
        "--scenarios", str(scenarios), "--dry-run",
    )  # fmt: skip
    assert "4 tools over MCP; they only read: get_balance;" in printed
    assert "need the customer's confirmation: sign_in, pay_back, drop_everything" in printed
