"""Notes of a customer: kept with consent to their words, gone when their time is over or the customer asks."""

from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command

from stateset_agents import build_graph
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act
from stateset_agents.tools.memory import DAY, MOST, Memory
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.tool import Session

ANN = Session(customer="C1")
NOTE = Act(tool="remember", arguments={"note": "allergic to wool"})


class Listening(Oracle):
    """Remembers its prompt before each answer."""

    prompts: list[str] = []  # noqa: RUF012 (a pydantic field: each model has its own)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.prompts.append(messages[0].text)
        return super()._generate(messages, *args, **kwargs)


async def conversation(
    store: BaseStore, customer: str, *plan: Act, agrees: bool = True
) -> Listening:
    policy = Listening(plan=plan)
    graph = build_graph(
        "service", policy=policy, backend=generate(1, "train").clone(), store=store, guard=False,
        identity=lambda config: customer, checkpointer=InMemorySaver(),
    )  # fmt: skip
    config: Any = {"configurable": {"thread_id": f"{customer}/{id(policy)}"}, "recursion_limit": 20}
    end = await graph.ainvoke({"messages": [HumanMessage("hi")]}, config)
    while "__interrupt__" in end:
        end = await graph.ainvoke(Command(resume={"confirmed": agrees}), config)
    return policy


async def test_what_a_customer_agreed_to_is_known_in_the_next_conversation_and_to_nobody_else() -> (
    None
):
    store = InMemoryStore()
    first = await conversation(store, "C1", NOTE, Act(say="Noted."))
    assert "wool" not in first.prompts[0]
    again = await conversation(store, "C1", Act(say="Hello again."))
    assert "<<allergic to wool>>" in again.prompts[0]
    other = await conversation(store, "C2", Act(say="Hello."))
    assert "wool" not in other.prompts[0]


async def test_without_consent_nothing_is_kept() -> None:
    store = InMemoryStore()
    await conversation(store, "C1", NOTE, Act(say="As you like."), agrees=False)
    assert await Memory(store).recall("C1") == []


async def test_a_customer_who_wants_to_be_forgotten_is() -> None:
    store = InMemoryStore()
    await conversation(store, "C1", NOTE, Act(say="Noted."))
    await conversation(store, "C1", Act(tool="forget_me"), Act(say="Gone."))
    assert await Memory(store).recall("C1") == []
    assert list(await store.asearch(("customers", "C1"))) == []


async def test_notes_expire_and_the_oldest_makes_room() -> None:
    store, now = InMemoryStore(), [1_000_000.0]
    memory = Memory(store, days=10, clock=lambda: now[0])
    for number in range(MOST + 3):
        now[0] += 1
        note = {"note": f"n{number}"}
        kept = await memory.commit(ANN, "remember", note, confirmed=True, key=f"k{number}")
        assert kept.result == {"kept_days": 10}
    assert await memory.recall("C1") == [f"n{number}" for number in range(3, MOST + 3)]
    now[0] += 10 * DAY
    assert await memory.recall("C1") == []
    assert list(await store.asearch(("customers", "C1"))) == []


async def test_the_same_key_keeps_one_note() -> None:
    memory = Memory(InMemoryStore())
    for _ in range(2):
        await memory.commit(ANN, "remember", {"note": "once"}, confirmed=True, key="k")
    assert await memory.recall("C1") == ["once"]


@pytest.mark.parametrize(
    ("session", "name", "arguments", "code"),
    [
        (Session(customer=""), "remember", {"note": "x"}, "not_verified"),
        (ANN, "remember", {}, "bad_arguments"),
        (ANN, "remember", {"note": "x" * 301}, "bad_arguments"),
        (ANN, "remember", {"note": 5}, "bad_arguments"),
        (ANN, "forget_me", {"who": "C2"}, "bad_arguments"),
        (ANN, "dream", {}, "no_such_tool"),
    ],
)
async def test_bad_calls_are_answered(
    session: Session, name: str, arguments: dict[str, Any], code: str
) -> None:
    memory = Memory(InMemoryStore())
    assert (await memory.propose(session, name, arguments)).result["error"] == code
    outcome = await memory.commit(session, name, arguments, confirmed=True, key="k")
    assert outcome.result["error"] == code
