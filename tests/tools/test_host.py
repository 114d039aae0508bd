"""Tools of somebody else's app: what they answer, what happens after they acted, and who is asked before."""

import asyncio
import dataclasses
import datetime
import decimal
from typing import Annotated, Any

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from stateset_agents import build_graph
from stateset_agents.errors import BadInput
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act
from stateset_agents.tools.host import HostTools
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.tool import Session

ANN = Session(customer="ann")
CALL = {"order": "W1"}


class Opaque:
    def __str__(self) -> str:
        raise RuntimeError("it cannot be printed")


@dataclasses.dataclass
class Receipt:
    total: decimal.Decimal


class Till:
    """An app that counts what it did, and answers with whatever it has."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.done = answer, 0

    @property
    def tools(self) -> list[BaseTool]:
        def refund(order: str) -> Any:
            """Pay back."""
            self.done += 1
            return self.answer

        return [StructuredTool.from_function(refund)]


def graph_of(tools: list[BaseTool], *acts: Act, **options: Any) -> Any:
    return build_graph(
        "till", prompt="Help.", policy=Oracle(plan=(*acts, Act(say="Done."))), tools=tools,
        checkpointer=InMemorySaver(), guard=False, **options,
    )  # fmt: skip


REFUND = Act(tool="refund", arguments=CALL)
THREAD: Any = {"configurable": {"thread_id": "1"}}
HELLO: Any = {"messages": [HumanMessage("refund it")]}


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"total": decimal.Decimal("12.50")}, '{"total": "12.50"}'),
        (decimal.Decimal("12.50"), "12.50"),
        ({"at": datetime.datetime(2026, 5, 3)}, '{"at": "2026-05-03T00:00:00"}'),
        (Receipt(decimal.Decimal(3)), '{"total": "3"}'),
        ({"x": Opaque()}, '{"x": "<Opaque>"}'),
        ({("a", 1): {1}}, "{\"('a', 1)\": [1]}"),
        (float("inf"), "inf"),
        ("für 3 €", "für 3 €"),
        ([{"type": "text", "text": "ok"}], '[{"type": "text", "text": "ok"}]'),
        (None, "null"),
        (b"\xff", "b'\\xff'"),
    ],
)
async def test_a_write_is_made_once_whatever_it_answers(answer: Any, shown: str) -> None:
    till = Till(answer)
    graph = graph_of(till.tools, REFUND, writes=["refund"])
    await graph.ainvoke(HELLO, THREAD)
    for _ in range(2):
        end = await graph.ainvoke(Command(resume={"confirmed": True}), THREAD)
    assert till.done == 1
    (reply,) = [m.text for m in end["messages"] if isinstance(m, ToolMessage)]
    assert reply == shown
    assert [call["status"] for call in end["tool_calls"]] == ["done"]


async def test_a_turn_that_is_cancelled_or_tried_again_does_not_write_twice() -> None:
    done, may_end = [], asyncio.Event()

    @tool
    async def refund(order: str) -> str:
        """Pay back, slowly."""
        done.append(order)
        await may_end.wait()
        return "paid"

    backend = HostTools([refund], writes=["refund"])
    first = asyncio.ensure_future(backend.commit(ANN, "refund", CALL, confirmed=True, key="t/1"))
    await asyncio.sleep(0)
    first.cancel()
    again = asyncio.ensure_future(backend.commit(ANN, "refund", CALL, confirmed=True, key="t/1"))
    await asyncio.sleep(0)
    may_end.set()
    assert (await again).result == "paid"
    assert done == ["W1"]
    other = await backend.commit(ANN, "refund", {"order": "W2"}, confirmed=True, key="t/1")
    assert other.result["error"] == "key_reused"


async def test_a_tool_may_ask_somebody_and_sees_the_runs_own_config() -> None:
    @tool
    def refund(order: str, config: RunnableConfig) -> str:
        """Pay back after a question."""
        about = config["configurable"]
        return f"refunded for {interrupt('Why?')} on {about['thread_id']} of {about['app']}"

    graph = graph_of([refund], REFUND)
    config: Any = {"configurable": {"thread_id": "1", "app": "mine"}}
    end = await graph.ainvoke(HELLO, config)
    assert end["__interrupt__"][0].value == "Why?"
    end = await graph.ainvoke(Command(resume="a scratch"), config)
    (reply,) = [m.text for m in end["messages"] if isinstance(m, ToolMessage)]
    assert reply == "refunded for a scratch on 1 of mine"


async def test_a_write_that_asks_again_after_its_confirmation_is_made_once() -> None:
    done: list[str] = []

    @tool
    def refund(order: str) -> str:
        """Pay back after a question."""
        reason = interrupt("Why?")
        done.append(reason)
        return "ok"

    graph = graph_of([refund], REFUND, writes=["refund"])
    await graph.ainvoke(HELLO, THREAD)
    end = await graph.ainvoke(Command(resume={"confirmed": True}), THREAD)
    assert end["__interrupt__"][0].value == "Why?"
    end = await graph.ainvoke(Command(resume="a scratch"), THREAD)
    assert (done, end["messages"][-1].text) == (["a scratch"], "Done.")


async def test_what_failed_is_not_called_done() -> None:
    @tool
    def broken(order: str) -> str:
        """Fails."""
        raise ConnectionError("the till is offline")

    @tool
    def handled(order: str) -> str:
        """Fails and says so itself."""
        raise ToolException("no such order")

    handled.handle_tool_error = True

    @tool
    def polite(order: str) -> dict[str, Any]:
        """Says that nothing was done."""
        return {"ok": False, "reason": "closed"}

    backend = HostTools([broken, handled, polite], writes=["broken"])
    lost = await backend.commit(ANN, "broken", CALL, confirmed=True, key="k")
    assert lost.status == "invalid"
    assert "may have been done" in lost.result["help"]
    answered = await backend.propose(ANN, "handled", CALL)
    assert (answered.status, answered.text) == ("invalid", "no such order")
    assert (await backend.propose(ANN, "polite", CALL)).status == "invalid"


async def test_consent_is_asked_only_for_what_would_go_through() -> None:
    till = Till("paid")

    def check(name: str, arguments: dict[str, Any]) -> str | None:
        return "no such order" if arguments["order"] == "W404" else None

    backend = HostTools(till.tools, writes=["refund"], check=check)
    missing = await backend.propose(ANN, "refund", {})
    assert (missing.status, missing.result["error"]) == ("invalid", "bad_arguments")
    unknown = await backend.propose(ANN, "refund", {"order": "W404"})
    assert (unknown.status, unknown.result["help"]) == ("invalid", "no such order")
    assert (await backend.propose(ANN, "refund", CALL)).status == "proposed"


async def test_a_preview_needs_no_consent_and_the_same_tools_act_does() -> None:
    @tool
    def refund(order: str, preview: bool) -> str:
        """Pay back, or say what it would be."""
        return "12.50" if preview else "paid"

    backend = HostTools([refund], writes=lambda name, arguments: not arguments["preview"])
    shown = await backend.propose(ANN, "refund", {**CALL, "preview": True})
    assert (shown.status, shown.text) == ("done", "12.50")
    assert (await backend.propose(ANN, "refund", {**CALL, "preview": False})).status == "proposed"


def rule(**fields: Any) -> Rule:
    defaults = {
        "id": "limit", "version": 1, "applies_to": ("refund",), "unless": "call.amount <= limit.most",
        "limits": {"most": 50}, "code": "too_much", "help": "ask for less", "text": "At most {most}.",
    }  # fmt: skip
    return Rule.model_validate({**defaults, **fields})


@tool
def refund(order: str, amount: int) -> str:
    """Pay back."""
    return "paid"


async def test_rules_apply_by_name_to_anybodys_tools() -> None:
    backend = HostTools([refund], writes=["refund"], rules=[rule()])
    denied = await backend.propose(ANN, "refund", {**CALL, "amount": 60})
    assert (denied.status, denied.rule) == ("denied", "limit")
    assert (await backend.propose(ANN, "refund", {**CALL, "amount": 40})).status == "proposed"
    made = await backend.commit(ANN, "refund", {**CALL, "amount": 60}, confirmed=True, key="k")
    assert made.status == "denied"
    with pytest.raises(BadInput, match=r"order\.days"):
        HostTools([refund], rules=[rule(unless="order.days <= limit.most")])
    with pytest.raises(BadInput, match="'fly'"):
        graph_of([refund], rules=[rule(applies_to=("fly",))])


async def test_a_rule_asks_a_person_where_one_can_be_asked() -> None:
    needs = rule(effect="approval", unless="call.amount <= limit.most or call.approved == True")
    act = Act(tool="refund", arguments={**CALL, "amount": 60})
    graph = graph_of([refund], act, rules=[needs], approvals=True)
    end = await graph.ainvoke(HELLO, THREAD)
    assert end["__interrupt__"][0].value["type"] == "confirmation"
    end = await graph.ainvoke(Command(resume={"confirmed": True}), THREAD)
    assert end["__interrupt__"][0].value["type"] == "approval"
    end = await graph.ainvoke(Command(resume={"confirmed": True}), THREAD)
    assert [call["status"] for call in end["tool_calls"]] == ["done"]
    alone = await HostTools([refund], rules=[needs]).propose(ANN, "refund", act.arguments)
    assert (alone.status, alone.rule) == ("denied", "limit")


async def test_a_tool_gets_its_calls_id_and_one_that_wants_the_hosts_state_is_refused() -> None:
    @tool
    def known(order: str, call: Annotated[str, InjectedToolCallId]) -> str:
        """Says its call."""
        return call

    @tool
    def stateful(order: str, state: Annotated[dict[str, Any], InjectedState]) -> str:
        """Reads the graph's state."""
        return ""

    session = Session(customer="ann", call="c1")
    assert (await HostTools([known]).propose(session, "known", CALL)).text == "c1"
    with pytest.raises(BadInput, match="'state'"):
        HostTools([stateful])
    with pytest.raises(BadInput, match="twice"):
        HostTools([known, known])


async def test_two_commits_at_once_write_once_and_an_answer_that_is_no_model_may_have_been_done() -> (
    None
):
    done: list[str] = []

    class Receipt(BaseModel):
        id: str

    @tool
    async def pay(order: str) -> str:
        """Pays, then cannot read what the bank answered."""
        done.append(order)
        return Receipt.model_validate({}).id

    async def check(name: str, arguments: dict[str, Any]) -> None:
        await asyncio.sleep(0.01)

    backend = HostTools([pay], writes=["pay"], check=check)
    both = await asyncio.gather(
        *(backend.commit(ANN, "pay", CALL, confirmed=True, key="k") for _ in range(2))
    )
    assert done == ["W1"]
    assert all("may have been done" in outcome.result["help"] for outcome in both)
    made = await backend.made(ANN, "pay", CALL, key="k")
    assert made is not None
    assert made.result == both[0].result
    assert await backend.made(ANN, "pay", CALL, key="another") is None
