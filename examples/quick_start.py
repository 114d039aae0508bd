"""Train the seed policy on a scripted customer and ask it something. Three minutes on two cores."""

import asyncio

from stateset_agents import (
    AgentConfig,
    CompositeReward,
    ConversationEnvironment,
    HelpfulnessReward,
    MultiTurnAgent,
    SafetyReward,
    train,
)


async def main() -> None:
    agent = MultiTurnAgent(AgentConfig(model_name="seed", temperature=0.7))
    await agent.initialize()
    env = ConversationEnvironment(
        scenarios=[{"id": "cs_demo", "user_responses": ["Hi", "Need refund", "Thanks!"]}],
        max_turns=6,
    )
    reward = CompositeReward([HelpfulnessReward(0.7), SafetyReward(0.3)])
    trained = await train(
        agent=agent, environment=env, reward_fn=reward, num_episodes=50, profile="balanced"
    )
    print(await trained.generate_response([{"role": "user", "content": "I need a refund."}]))
    await trained.close()


if __name__ == "__main__":
    asyncio.run(main())
