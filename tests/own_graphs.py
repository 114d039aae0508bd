"""Graphs of somebody's own behind the endpoint, for tests: a policy server, graphs, and a client."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

import httpx
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
            cut = body.get("max_tokens") == 1 or body.get("max_completion_tokens") == 1
            choice = {"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}
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
