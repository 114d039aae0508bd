"""A process that refunds through the service graph and may die on the way; `test_kill_between.py` runs it.

python -m tests.refund_process URL SCHEMA propose | die | resume
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.types import Command

from stateset_agents.graphs import service
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act
from stateset_agents.tools.executor import Executor, Outcome
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.shop.postgres import PostgresShop

THREAD: Any = {"configurable": {"thread_id": "one"}, "recursion_limit": 20}


async def main(url: str, schema: str, step: str) -> None:
    shop = PostgresShop(url, schema=schema)
    line = shop.the(
        "SELECT lines.order_id, line, paid, customer_id FROM lines JOIN orders ON orders.id = lines.order_id "
        "JOIN shipments ON shipments.order_id = orders.id WHERE delivered_day >= 180 ORDER BY 1, 2"
    )
    refund = Act(
        tool="issue_refund",
        arguments={
            "order_id": line["order_id"],
            "line": line["line"],
            "amount": show(line["paid"]),
        },
    )
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        await saver.setup()
        graph = service.build(saver)
        context = service.context(
            Oracle(plan=(refund, Act(say="Done."))), service.over(shop), thread="one", customer=line["customer_id"]
        )  # fmt: skip
        send: Any = Command(resume={"confirmed": True})
        if step == "propose":
            send = {"messages": [HumanMessage("refund it")]}
        if step == "die":
            commit_and_die()
        end = await graph.ainvoke(send, THREAD, context=context)
        waiting = [question.value for question in end.get("__interrupt__", [])]
        print(json.dumps({"waiting": waiting, "text": end["messages"][-1].text}), flush=True)
        if step == "propose":
            await asyncio.sleep(600)


def commit_and_die() -> None:
    """The worst moment: the shop has changed, and the graph has not yet written that down."""
    commit = Executor.commit

    def committed(self: Executor, *arguments: Any, **options: Any) -> Outcome:
        commit(self, *arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    Executor.commit = committed  # type: ignore[method-assign]


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
