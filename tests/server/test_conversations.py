"""A conversation with the endpoint outlives the process where it is kept in a database."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from stateset_agents.errors import BadInput
from stateset_agents.graphs import service
from stateset_agents.jobs.serve import service_app
from stateset_agents.jobs.served_graphs import ServedGraph
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.chat_model import connect
from stateset_agents.scenario import Act
from stateset_agents.server import conversations
from stateset_agents.server.app import build
from stateset_agents.server.conversations import Conversations, kept_in
from stateset_agents.server.served import Served, served_agents
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.traces.store import TraceStore
from tests.servers import Running


def served(shop: Shop, customer: str, *plan: Act) -> dict[str, Served]:
    policy, backend = Oracle(plan=plan), service.over(shop)
    return {
        "service": served_agents(
            compile=service.build,
            context=lambda thread: service.context(
                policy, backend, thread=thread, customer=customer
            ),
            step_limit=service.STEP_LIMIT,
        )
    }


async def ask(
    kept: Conversations, graphs: dict[str, Served], messages: list[Any]
) -> dict[str, Any]:
    async with (
        Running(build(graphs, key=None, conversations=kept)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        whole = await client.chat.completions.create(model="service", messages=messages)
        return whole.choices[0].message.model_dump(exclude_none=True)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_restart_between_proposal_and_confirmation_loses_nothing(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = str(tmp_path / "conversations.db")
    if kind == "postgresql":
        place = request.getfixturevalue("postgres_url")
    shop = generate(1, "train").clone()
    order = shop.the("SELECT id, customer_id FROM orders WHERE status = 'pending' ORDER BY id")
    cancel = Act(tool="cancel_order", arguments={"order_id": order["id"]})
    graphs = served(shop, order["customer_id"], cancel, Act(say="It is cancelled."))
    messages: list[Any] = [{"role": "user", "content": f"cancel my order, please ({kind})"}]
    async with kept_in(place) as kept:
        messages.append(await ask(kept, graphs, messages))
    (call,) = messages[-1]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["tool"] == "cancel_order"
    messages.append({"role": "tool", "tool_call_id": call["id"], "content": '{"confirmed": true}'})
    async with kept_in(place) as kept:
        messages.append(await ask(kept, graphs, messages))
        again = await ask(kept, graphs, messages[:-1])  # its answer was lost: it is the same
        assert again == messages[-1]
    assert messages[-1]["content"] == "It is cancelled."
    assert (
        len(shop.all("SELECT * FROM payments WHERE kind = 'refund' AND order_id = ?", order["id"]))
        >= 1
    )
    done = shop.all("SELECT * FROM audit WHERE tool = 'cancel_order' AND outcome = 'done'")
    assert len(done) == 1


async def test_in_memory_the_oldest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_CONVERSATIONS", 2)
    kept, shop = Conversations(), generate(1, "train").clone()
    graphs = served(shop, "C1", *[Act(say="Hello.")] * 4)
    for name in "abc":
        await ask(kept, graphs, [{"role": "user", "content": name}])
    rows = await kept.tables.run("SELECT thread FROM stateset_conversation")
    assert len(rows) == 2
    threads = {item.config["configurable"]["thread_id"] async for item in kept.saver.alist(None)}
    assert len(threads) == 2


async def test_a_database_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "WAIT", 0.5)
    with pytest.raises(BadInput, match="nowhere"):
        async with kept_in(str(tmp_path / "nowhere" / "state.db")):
            pass
    with pytest.raises(BadInput, match="postgresql://"):
        async with kept_in("postgresql://nobody@127.0.0.1:1/none"):
            pass


async def test_each_answer_is_a_trace_under_the_id_that_the_client_is_told(
    engine: str, tmp_path: Path
) -> None:
    shop = generate(1, "train").clone()
    with TraceStore(tmp_path / "traces.db") as store:
        app = service_app(ServedGraph(shop=shop), connect(engine, "policy"), key=None, sink=store)
        async with (
            Running(app) as url,
            openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
        ):
            messages: list[Any] = [{"role": "user", "content": "Where is my order?"}]
            first = await client.chat.completions.create(model="service", messages=messages)
            messages += [
                first.choices[0].message.model_dump(exclude_none=True),
                {"role": "user", "content": "W1234"},
            ]
            second = await client.chat.completions.create(model="service", messages=messages)
        store.flush()
        assert store.feedback("thumbs", 1, response=second.id) == 1
        one_trace, two = store.traces()
    assert (one_trace.thread, one_trace.exactness, two.exactness) == (two.thread, "exact", "exact")
    assert [item.key for item in two.feedback] == ["thumbs"]
    assert one_trace.feedback == ()
    assert {call.node for call in two.model_calls} == {"policy"}
    assert two.messages[0]["content"] == "Where is my order?"
