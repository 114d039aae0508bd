"""Our graphs inside somebody else's app: their sign-in, their tools, their checkpointer."""

from typing import Any

import httpx
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.types import Command

from examples.embed_in_your_app import create_app, workshop
from stateset_agents import build_graph
from stateset_agents.errors import BadInput
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act
from stateset_agents.tools.shop.generate import generate


async def test_the_agent_acts_for_who_has_signed_in_and_asks_before_it_writes() -> None:
    database = workshop()
    plan = (
        Act(tool="my_repairs"),
        Act(say="Your red tandem is ready on 3 May."),
        Act(tool="book_repair", arguments={"bike": "cargo bike"}),
        Act(say="Your cargo bike is booked, it is ready next week."),
    )
    transport = httpx.ASGITransport(app=create_app(Oracle(plan=plan), database))
    ann = {"Authorization": "Bearer ann-token"}
    async with httpx.AsyncClient(transport=transport, base_url="http://workshop") as client:
        assert (
            await client.post("/talk", json={}, headers={"Authorization": "x"})
        ).status_code == 401
        first = await client.post("/talk", json={"text": "Is it ready?"}, headers=ann)
        assert first.json() == {"text": "Your red tandem is ready on 3 May."}
        second = await client.post("/talk", json={"text": "Book my cargo bike"}, headers=ann)
        assert second.json()["confirm"]["arguments"] == {"bike": "cargo bike"}
        assert database.execute("SELECT COUNT(*) FROM repairs").fetchone() == (2,)
        third = await client.post("/talk", json={"confirmed": True}, headers=ann)
        assert third.json()["text"].startswith("Your cargo bike is booked")
    booked = database.execute("SELECT owner, bike FROM repairs WHERE id > 2").fetchall()
    assert booked == [("ann", "cargo bike")]


async def test_the_guard_holds_what_no_tool_of_the_app_said() -> None:
    plan = (Act(say="Your bike is free of charge on 9 June."), Act(say="Which bike is it?"))

    class Stubborn(Oracle):
        """Goes on with its plan though nothing of it reached the conversation."""

        count: int = 0

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            shown = [*messages, *([self._repeated()] * self.count)]
            self.count += 1
            return super()._generate(shown, *args, **kwargs)

        def _repeated(self) -> Any:
            from langchain_core.messages import AIMessage

            return AIMessage("")

    graph = build_graph("workshop", prompt="Help.", policy=Stubborn(plan=plan), tools=[nothing])
    end = await graph.ainvoke({"messages": [HumanMessage("hello")]}, {"recursion_limit": 20})
    assert end["messages"][-1].text == "Which bike is it?"


class Says(Oracle):
    """Says the same whatever it is asked, or calls the same tool."""

    plan: tuple[Act, ...] = ()
    act: Act
    count: int = 0

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        self.plan = (self.act,) * (len(messages) + 1)
        return super()._generate(messages, *args, **kwargs)


@tool
def nothing() -> str:
    """Nothing."""
    return ""


@tool
def escalate_to_human(reason: str) -> str:
    """Passes to a person, on working days."""
    raise RuntimeError("nobody is there")


@pytest.mark.parametrize("tools", [[nothing], [nothing, escalate_to_human]])
async def test_a_held_back_reply_ends_in_a_state_that_says_so(tools: Any) -> None:
    policy = Says(act=Act(say="It is free and arrives on 9 June."))
    graph = build_graph("workshop", prompt="Help.", policy=policy, tools=tools)
    end = await graph.ainvoke({"messages": [HumanMessage("hello")]})
    assert policy.count <= 6
    assert "9 june" in end["handed_off"]["reason"]
    assert "colleague" in end["messages"][-1].text


async def test_a_turn_that_never_ends_is_ended() -> None:
    policy = Says(act=Act(tool="nothing"))
    graph = build_graph("workshop", prompt="Help.", policy=policy, tools=[nothing])
    with pytest.raises(GraphRecursionError):
        await graph.ainvoke({"messages": [HumanMessage("hello")]})
    assert policy.count <= 20


async def test_our_shop_with_the_hosts_sign_in_and_a_tool_beside() -> None:
    shop = generate(1, "train").clone()
    order = shop.the("SELECT id, customer_id FROM orders WHERE status = 'pending' ORDER BY id")

    @tool
    def loyalty_points() -> dict[str, int]:
        """The customer's points in the host's own system."""
        return {"points": 120}

    plan = (
        Act(tool="loyalty_points"),
        Act(tool="cancel_order", arguments={"order_id": order["id"]}),
        Act(say="Cancelled."),
    )
    graph = build_graph(
        "service", policy=Oracle(plan=plan), backend=shop, tools=[loyalty_points],
        identity=lambda config: config["configurable"]["user"], checkpointer=InMemorySaver(), guard=False,
    )  # fmt: skip
    config: Any = {"configurable": {"thread_id": "1", "user": order["customer_id"]}}
    end = await graph.ainvoke({"messages": [HumanMessage("cancel it")]}, config)
    assert end["__interrupt__"][0].value["tool"] == "cancel_order"
    end = await graph.ainvoke(Command(resume={"confirmed": True}), config)
    assert next(call["result"] for call in end["tool_calls"]) == {"points": 120}
    assert shop.the("SELECT status FROM orders WHERE id = ?", order["id"])["status"] == "cancelled"


def test_what_cannot_be_built_is_refused() -> None:
    policy = Oracle(plan=())
    with pytest.raises(BadInput, match="Expected one of service"):
        build_graph("circus", policy=policy, backend=generate(1, "train").clone())
    with pytest.raises(BadInput, match="found neither"):
        build_graph("service", policy=policy)

    @tool
    def get_order() -> str:
        """Ours has this name."""
        return ""

    with pytest.raises(BadInput, match="'get_order' twice"):
        build_graph(
            "service", policy=policy, backend=generate(1, "train").clone(), tools=[get_order]
        )
    with pytest.raises(BadInput, match="writes"):
        build_graph("service", policy=policy, tools=[get_order], writes=["fly"])


async def test_a_graph_without_a_context_says_what_it_wants() -> None:
    from stateset_agents.graphs import service

    with pytest.raises(BadInput, match="build_graph"):
        await service.build().ainvoke({"messages": [HumanMessage("hi")]}, {"recursion_limit": 20})
