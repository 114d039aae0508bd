"""The service graph in ten lines: a shop, a policy, a question, and the tools it used."""

import asyncio

from langchain_core.messages import HumanMessage

from stateset_agents import AgentConfig, MultiTurnAgent
from stateset_agents.graphs import service
from stateset_agents.tools.shop.generate import generate


async def main() -> None:
    shop = generate(1, "train").clone()
    row = shop.first(
        "SELECT orders.id, zip FROM orders JOIN shipments ON order_id = orders.id ORDER BY 1"
    )
    assert row is not None
    question = f"Where is my order? Order {row['id']}. My zip is {row['zip']}."
    async with MultiTurnAgent(AgentConfig(model_name="seed", temperature=0.0)) as agent:
        # Greedy, and with the guard: what no tool said does not reach the customer.
        policy = agent.policy.model_copy(update={"temperature": 0.0})
        context = service.context(policy, service.over(shop), thread="example", guard=True)
        state = await service.build().ainvoke(
            {"messages": [HumanMessage(question)]}, context=context
        )
    for message in state["messages"]:
        message.pretty_print()


if __name__ == "__main__":
    asyncio.run(main())
