"""A shop that does not answer: asked again, and then a person takes over. No exception, no dangling call."""

from typing import Any

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from stateset_agents.errors import BadInput
from stateset_agents.graphs import service
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act
from stateset_agents.tools.backend import ShopBackend
from stateset_agents.tools.executor import Executor, Outcome
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.tools.toolset import SERVICE_TOOLS


class Flaky(ShopBackend):
    """Loses its connection a number of times in one of its steps."""

    def __init__(self, shop: Shop, step: str, failures: int) -> None:
        super().__init__(Executor(shop, SERVICE_TOOLS))
        self.step = step
        self.failures = failures

    async def _run(self, act: Any, *arguments: Any, **options: Any) -> Outcome:
        if act.__name__ == self.step and self.failures:
            self.failures -= 1
            raise ConnectionResetError("the database went away")
        outcome: Outcome = await super()._run(act, *arguments, **options)
        return outcome


class Talk:
    """A customer who wants an order cancelled, in a shop with an outage."""

    def __init__(self, step: str, failures: int) -> None:
        self.shop = generate(1, "train").clone()
        order = self.shop.the(
            "SELECT id, customer_id FROM orders WHERE status = 'pending' ORDER BY id"
        )
        self.order = order["id"]
        plan = (Act(tool="cancel_order", arguments={"order_id": self.order}), Act(say="Cancelled."))
        self.graph = service.build(InMemorySaver())
        self.config: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 20}
        self.context = service.context(
            Oracle(plan=plan),
            Flaky(self.shop, step, failures),
            thread="t",
            customer=order["customer_id"],
        )

    async def asks(self) -> dict[str, Any]:
        send: Any = {"messages": [HumanMessage("cancel it")]}
        end: dict[str, Any] = await self.graph.ainvoke(send, self.config, context=self.context)
        return end

    async def agrees(self) -> dict[str, Any]:
        send: Any = Command(resume={"confirmed": True})
        end: dict[str, Any] = await self.graph.ainvoke(send, self.config, context=self.context)
        return end

    @property
    def status(self) -> str:
        return str(self.shop.the("SELECT status FROM orders WHERE id = ?", self.order)["status"])


@pytest.mark.parametrize("step", ["propose", "commit"])
async def test_a_short_outage_is_waited_for(step: str) -> None:
    talk = Talk(step, failures=2)
    await talk.asks()
    end = await talk.agrees()
    assert (talk.status, end["messages"][-1].text) == ("cancelled", "Cancelled.")


async def test_in_a_long_one_a_person_takes_over_with_what_was_asked() -> None:
    talk = Talk("propose", failures=3)
    end = await talk.asks()
    assert talk.status == "pending"
    assert "the database went away" in end["handed_off"]["reason"]
    assert end["handed_off"]["requests"] == ["cancel it"]
    assert "colleague" in end["messages"][-1].text
    (answer,) = [m for m in end["messages"] if isinstance(m, ToolMessage)]
    assert "unavailable" in answer.text


async def test_a_confirmation_that_met_an_outage_can_be_given_again() -> None:
    talk = Talk("commit", failures=3)
    await talk.asks()
    with pytest.raises(ConnectionResetError):
        await talk.agrees()
    assert talk.status == "pending"
    end = await talk.agrees()
    assert (talk.status, end["messages"][-1].text) == ("cancelled", "Cancelled.")


async def test_a_resume_for_a_thread_that_is_not_there_is_refused() -> None:
    talk = Talk("propose", failures=0)
    with pytest.raises(BadInput, match="nothing here waits"):
        await talk.agrees()
    assert talk.shop.changes() == ()
