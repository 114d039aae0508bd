"""An agent inside somebody else's app: a bicycle workshop with its own database, sign-in and tools.

uvicorn --factory examples.embed_in_your_app:app     (with STATESET_BASE_URL and MODEL, a model that calls tools)

curl -H "Authorization: Bearer ann-token" -H "Content-Type: application/json" -d '{"text": "Is my bike ready?"}' localhost:8000/talk
"""

import os
import sqlite3
from typing import Any

from fastapi import Depends, FastAPI, Header, HTTPException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel

from stateset_agents import build_graph, connect

TOKENS = {"ann-token": "ann", "ben-token": "ben"}  # the app's own sign-in


def workshop() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.executescript(
        "CREATE TABLE repairs(id INTEGER PRIMARY KEY, owner TEXT, bike TEXT, ready TEXT, key TEXT UNIQUE);"
        "INSERT INTO repairs(owner, bike, ready) VALUES('ann', 'red tandem', '3 May'), ('ben', 'racer', '9 June');"
    )
    return database


class Turn(BaseModel):
    text: str = ""
    confirmed: bool | None = None


def create_app(policy: BaseChatModel, database: sqlite3.Connection) -> FastAPI:
    @tool
    def my_repairs(config: RunnableConfig) -> dict[str, Any]:
        """The signed-in customer's bikes in the workshop."""
        who = config["configurable"]["customer"]
        rows = database.execute("SELECT bike, ready FROM repairs WHERE owner = ?", (who,))
        return {"repairs": [{"bike": bike, "ready": ready} for bike, ready in rows]}

    @tool
    def book_repair(bike: str, config: RunnableConfig) -> dict[str, Any]:
        """Book a repair for a bike of the signed-in customer."""
        about = config["configurable"]
        database.execute(
            "INSERT OR IGNORE INTO repairs(owner, bike, ready, key) VALUES(?, ?, 'next week', ?)",
            (about["customer"], bike, about["idempotency_key"]),
        )
        return {"booked": bike, "ready": "next week"}

    graph = build_graph(
        "workshop",
        prompt="You help customers of a bicycle workshop. Say only what a tool told you.",
        policy=policy,
        tools=[my_repairs, book_repair],
        writes=["book_repair"],
        identity=lambda config: config["configurable"]["user"],
        checkpointer=InMemorySaver(),
    )
    app = FastAPI()

    def signed_in(authorization: str = Header()) -> str:
        user = TOKENS.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HTTPException(401)
        return user

    @app.post("/talk")
    async def talk(turn: Turn, user: str = Depends(signed_in)) -> dict[str, Any]:
        config: Any = {"configurable": {"thread_id": user, "user": user}, "recursion_limit": 20}
        send: Any = {"messages": [HumanMessage(turn.text)]}
        if turn.confirmed is not None:
            send = Command(resume={"confirmed": turn.confirmed})
        end = await graph.ainvoke(send, config)
        if "__interrupt__" in end:
            return {"confirm": end["__interrupt__"][0].value}
        return {"text": end["messages"][-1].text}

    return app


def app() -> FastAPI:
    return create_app(connect(os.environ["STATESET_BASE_URL"], os.environ["MODEL"]), workshop())
