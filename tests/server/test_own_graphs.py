"""Graphs of somebody's own behind the endpoint: who speaks, what they ask, and what is refused before anything starts."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AnyMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from stateset_agents import build_graph
from stateset_agents.errors import BadInput
from stateset_agents.jobs.serve import service_app
from stateset_agents.jobs.served_graphs import OwnGraph
from stateset_agents.policy.chat_model import connect
from stateset_agents.traces.store import TraceStore
from tests.servers import Running

REFUND = {"name": "refund", "arguments": json.dumps({"order": "W1"})}
refunded: list[str] = []
requests: list[dict[str, Any]] = []


@tool
def refund(order: str) -> str:
    """Pay back an order."""
    refunded.append(order)
    return f"refunded {order}"


def model_server() -> FastAPI:
    """A policy that pays back once, and otherwise repeats the last message."""
    app = FastAPI()

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        requests.append(body)
        last = body["messages"][-1]
        if body.get("tools") and last["role"] == "user":
            call = {"id": "call_1", "type": "function", "function": REFUND}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"role": "assistant", "content": f"heard: {last['content']}"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        message = answer(body)
        head = {"id": "c", "created": 0, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            return JSONResponse(
                {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            )

        async def pieces() -> AsyncIterator[str]:
            for word in str(message["content"]).split(" "):
                choices = [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]
                yield f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices})}\n\n"
            end = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
            yield f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': end})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    return app


class Talk(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def ours(model: Any) -> Any:
    return build_graph(
        "till", prompt="Help.", policy=model, tools=[refund], writes=["refund"], guard=False
    )


def langchains(model: Any) -> Any:
    return create_agent(
        model, [refund], middleware=[HumanInTheLoopMiddleware(interrupt_on={"refund": True})]
    )


def drafts_and_speaks(model: Any) -> Any:
    """Two nodes call the model; the customer is to hear the second."""

    async def draft(state: Talk) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    async def speak(state: Talk) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(Talk)
    graph.add_node("draft", draft)
    graph.add_node("speak", speak)
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "speak")
    graph.add_edge("speak", END)
    return graph.compile()


async def _reads_context(state: MessagesState, runtime: Runtime[Any]) -> dict[str, Any]:
    return {"messages": [await runtime.context["policy"].ainvoke(state["messages"])]}


compiled = (
    StateGraph(MessagesState).add_node("speak", _reads_context).add_edge(START, "speak").compile()
)


def asking(question: Any) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        def ask(state: Talk) -> dict[str, Any]:
            return {"messages": [("ai", f"noted {json.dumps(interrupt(question))}")]}

        return StateGraph(Talk).add_node("ask", ask).add_edge(START, "ask").compile()

    return make


@asynccontextmanager
async def endpoint(
    graph: Any, *speakers: str, store: TraceStore | None = None
) -> AsyncIterator[Callable[..., Any]]:
    refunded.clear()
    requests.clear()
    own = OwnGraph(name="mine", graph=graph, speakers=speakers)
    async with Running(model_server()) as model:
        policy = connect(model, "policy", exact=False)
        async with (
            Running(service_app(own, policy, key=None, sink=store)) as url,
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):

            async def turn(*messages: Any, **fields: Any) -> httpx.Response:
                body = {"model": "mine", "messages": list(messages), **fields}
                return await client.post("/chat/completions", json=body)

            yield turn


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def message_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    message: dict[str, Any] = answer.json()["choices"][0]["message"]
    return message


@pytest.mark.parametrize("graph", [ours, langchains])
@pytest.mark.parametrize("agreed", [True, False])
async def test_the_client_decides_what_any_graph_asks_to_confirm(graph: Any, agreed: bool) -> None:
    async with endpoint(graph) as turn:
        first = message_of(await turn(user("Refund W1.")))
        (call,) = first["tool_calls"]
        assert call["function"]["name"] == "confirm"
        shown = json.loads(call["function"]["arguments"])
        assert (shown["tool"], shown["arguments"]) == ("refund", {"order": "W1"})
        assert first["content"]
        assert refunded == []
        yes = {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": json.dumps({"confirmed": agreed}),
        }
        last = message_of(await turn(user("Refund W1."), first, yes))
        assert refunded == (["W1"] if agreed else [])
        assert "heard" in last["content"]
        assert (
            message_of(await turn(user("Refund W1."), first, yes)) == last
        )  # requests again: once
        assert refunded == (["W1"] if agreed else [])


async def test_only_the_last_message_of_a_turn_reaches_the_customer() -> None:
    async with endpoint(drafts_and_speaks) as turn:
        assert message_of(await turn(user("hello")))["content"] == "heard: heard: hello"


async def test_the_node_that_speaks_is_streamed_and_the_others_are_not() -> None:
    async with endpoint(drafts_and_speaks, "speak") as turn:
        answer = await turn(user("hello"), stream=True)
        lines = [
            json.loads(line[6:])
            for line in answer.text.splitlines()
            if line.startswith("data: {")
        ]  # fmt: skip
        pieces = [c["delta"].get("content") for part in lines for c in part["choices"]]
        words = [piece for piece in pieces if piece]
        assert "".join(words).strip() == "heard: heard: hello"
        assert len(words) > 1


async def test_a_compiled_graph_gets_the_policy_and_the_clients_sampling() -> None:
    async with endpoint(compiled) as turn:
        answer = await turn(user("hello"), temperature=0.5, max_tokens=7)
        assert message_of(answer)["content"] == "heard: hello"
        assert (
            requests[-1]["temperature"],
            requests[-1].get("max_completion_tokens") or requests[-1]["max_tokens"],
        ) == (0.5, 7)
        assert answer.json()["usage"]["total_tokens"] == 5
        refusal = await turn({"role": "system", "content": "Be rude."}, user("hello"))
        assert refusal.status_code == 400
        assert "takes no system" in refusal.json()["error"]["message"]


async def test_a_conversation_goes_on_where_it_was() -> None:
    async with endpoint(compiled) as turn:
        first = message_of(await turn(user("hello")))
        message_of(await turn(user("hello"), first, user("more")))
        assert [m["content"] for m in requests[-1]["messages"]] == ["hello", "heard: hello", "more"]


async def test_a_plain_question_is_answered_by_plain_words() -> None:
    async with endpoint(asking("Which size?")) as turn:
        first = message_of(await turn(user("A shirt.")))
        assert first == {"role": "assistant", "content": "Which size?"}
        assert (
            message_of(await turn(user("A shirt."), first, user("XL")))["content"] == 'noted "XL"'
        )


async def test_what_asks_for_a_form_is_answered_with_data() -> None:
    async with endpoint(asking({"question": "Your size?", "fields": ["size"]})) as turn:
        first = message_of(await turn(user("A shirt.")))
        (call,) = first["tool_calls"]
        assert (call["function"]["name"], first["content"]) == ("answer", "Your size?")
        assert (await turn(user("A shirt."), first, user("XL"))).status_code == 409
        form = {"role": "tool", "tool_call_id": call["id"], "content": '{"size": "XL"}'}
        assert (
            message_of(await turn(user("A shirt."), first, form))["content"]
            == 'noted {"size": "XL"}'
        )


async def test_a_decision_that_a_graph_does_not_take_is_refused_and_can_be_given_otherwise() -> (
    None
):
    question = {
        "action_requests": [
            {"name": "refund", "args": {"order": "W1"}, "description": "Pay W1 back?"}
        ],
        "review_configs": [{"action_name": "refund", "allowed_decisions": ["approve", "edit"]}],
    }
    async with endpoint(asking(question)) as turn:
        first = message_of(await turn(user("Refund.")))
        assert first["content"] == "Pay W1 back?"
        call = first["tool_calls"][0]["id"]
        no = {"role": "tool", "tool_call_id": call, "content": "no"}
        assert (await turn(user("Refund."), first, no)).status_code == 400
        yes = {**no, "content": "yes"}
        assert "approve" in message_of(await turn(user("Refund."), first, yes))["content"]


async def test_every_answer_is_recorded(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "t.db") as store:
        async with endpoint(langchains, store=store) as turn:
            first = message_of(await turn(user("Refund W1.")))
            yes = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "yes"}
            message_of(await turn(user("Refund W1."), first, yes))
    with TraceStore(tmp_path / "t.db") as store:
        traces = list(store.traces())
        assert [t.status for t in traces] == ["waiting", "completed"]
        assert [c.name for t in traces for c in t.tool_calls] == ["refund"]


class Numbers(TypedDict):
    count: int


@pytest.mark.parametrize(
    ("graph", "speakers", "reason"),
    [
        (StateGraph(MessagesState), (), "compile"),
        (compiled, ("nobody",), "--speaks: expected a node of the graph (speak)"),
        (StateGraph(Numbers).add_node("n", lambda s: s).add_edge(START, "n").compile(), (), "`messages`, found count"),
        (lambda model, world: None, (), "also needs world"),
        (7, (), "found int"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_before_anything_starts(
    graph: Any, speakers: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(BadInput) as error:
        OwnGraph(name="mine", graph=graph, speakers=speakers)
    assert reason in str(error.value)
