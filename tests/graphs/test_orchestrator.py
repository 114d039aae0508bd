"""Two intents in one conversation: a return, then a new address, by two agents with one session and one trace."""

from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from stateset_agents.graphs import orchestrator
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act, Change
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.traces.recorder import Recorder
from stateset_agents.traces.sink import CallBuffer


def transfer(agent: str) -> Act:
    return Act(tool="transfer", arguments={"agent": agent})


class Talk:
    """A conversation with the orchestrator, turn by turn."""

    def __init__(self, shop: Shop, *plan: Act, **who: Any) -> None:
        self.shop = shop
        self.graph = orchestrator.build(InMemorySaver())
        self.episode = CallBuffer()
        self.context = orchestrator.context(
            Oracle(plan=plan), orchestrator.over(shop), thread="t", **who
        )
        self.config: Any = {
            "configurable": {"thread_id": "t"}, "recursion_limit": orchestrator.STEP_LIMIT,
            "callbacks": [Recorder(self.episode)],
        }  # fmt: skip

    async def says(self, text: str, *, agrees: bool = True) -> dict[str, Any]:
        send: Any = {"messages": [HumanMessage(text)]}
        while True:
            end: dict[str, Any] = await self.graph.ainvoke(send, self.config, context=self.context)
            if "__interrupt__" not in end:
                return end
            send = Command(resume={"confirmed": agrees})


def two_orders(shop: Shop) -> tuple[dict[str, Any], dict[str, Any]]:
    """A customer's delivered line, and another order of theirs that has not shipped."""
    for line in shop.all(
        "SELECT lines.order_id, line, customer_id, customers.zip FROM lines JOIN orders ON orders.id = "
        "lines.order_id JOIN customers ON customers.id = customer_id JOIN shipments ON shipments.order_id = "
        "orders.id WHERE delivered_day >= 175 ORDER BY 1, 2"
    ):
        pending = shop.first(
            "SELECT id FROM orders WHERE status = 'pending' AND customer_id = ? ORDER BY id",
            line["customer_id"],
        )
        if pending is not None:
            return line, pending
    raise LookupError


async def test_a_return_and_then_a_new_address() -> None:
    shop = generate(1, "train").clone()
    line, pending = two_orders(shop)
    place = {"order_id": line["order_id"], "line": line["line"]}
    talk = Talk(
        shop,
        transfer("returns"),
        Act(tool="verify_identity", arguments={"order_id": line["order_id"], "zip": line["zip"]}),
        Act(tool="create_return", arguments={**place, "reason": "too small"}),
        Act(say="Your label is on its way."),
        transfer("fulfilment"),
        Act(
            tool="change_shipping_address",
            arguments={"order_id": pending["id"], "street": "1 New Road", "zip": "12345"},
        ),
        Act(say="Done, it ships to 1 New Road."),
    )
    first = await talk.says("I want to send something back.")
    assert first["active"] == "returns"
    second = await talk.says("And send my other order to 1 New Road, 12345.")
    assert second["active"] == "fulfilment"
    assert second["messages"][-1].text == "Done, it ships to 1 New Road."
    # One session: the second agent did not have to verify again.
    assert [call["name"] for call in second["tool_calls"]] == [
        "verify_identity", "create_return", "change_shipping_address",
    ]  # fmt: skip
    assert {call["status"] for call in second["tool_calls"]} == {"done"}
    changes = set(shop.changes())
    assert Change(table="orders", key=pending["id"], column="street", value="1 New Road") in changes
    assert Change(table="returns", key="RMA1", column="line", value=line["line"]) in changes
    # One trace: every call with the agent that made it.
    agents = [call.namespace.split(":")[0] for call in talk.episode.calls]
    assert agents == ["route", *["returns"] * 4, *["fulfilment"] * 2]


async def test_a_customer_is_not_passed_to_agents_that_act_for_others() -> None:
    shop = generate(1, "train").clone()
    order = shop.the("SELECT id FROM orders")["id"]
    talk = Talk(shop, transfer("risk"), Act(say="?"))
    end = await talk.says("hold somebody's order")
    assert "active" not in end
    talk = Talk(shop, transfer("service"), transfer("risk"), Act(say="No."))
    end = await talk.says("hold it")
    refused = [m for m in end["messages"] if isinstance(m, ToolMessage)][-1]
    assert "no_such_tool" in refused.text
    assert shop.changes() == ()
    hold = Act(tool="hold_order", arguments={"order_id": order, "reason": "new device"})
    talk = Talk(shop, transfer("risk"), hold, Act(say="Held."), role="staff")
    end = await talk.says(f"please look at {order}")
    assert end["tool_calls"][-1]["status"] == "done"


async def test_a_person_takes_over_with_a_packet_and_hands_back() -> None:
    shop = generate(1, "train").clone()
    line, _ = two_orders(shop)
    verify = Act(
        tool="verify_identity", arguments={"order_id": line["order_id"], "zip": line["zip"]}
    )
    orders = Act(tool="list_orders")
    gone = Act(tool="escalate_to_human", arguments={"reason": "wants a lawyer"})
    talk = Talk(
        shop,
        transfer("service"),
        verify,
        orders,
        gone,
        Act(say="x"),
        Act(say="x"),
        Act(say="Hello again."),
    )
    end = await talk.says("I want to speak to somebody.")
    packet = end["handed_off"]
    assert packet["customer"] == line["customer_id"]
    assert packet["reason"] == "wants a lawyer"
    assert packet["requests"] == ["I want to speak to somebody."]
    assert packet["facts"][0]["tool"] == "verify_identity"
    assert [attempt["status"] for attempt in packet["attempts"]] == ["done", "invalid", "done"]
    assert packet["pending"] is None
    again = await talk.says("still there?")
    assert "colleague" in again["messages"][-1].text
    await talk.graph.aupdate_state(talk.config, {"handed_off": None})
    back = await talk.says("thanks, one more thing")
    assert back["messages"][-1].text == "Hello again."
