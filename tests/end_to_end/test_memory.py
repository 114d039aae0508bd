"""A job's memory does not grow with its steps."""

import os
from pathlib import Path

import pytest

from stateset_agents import AgentConfig, ConversationEnvironment, MultiTurnAgent, train
from stateset_agents.rewards.composite import seed_reward
from stateset_agents.trainers.step_log import StepLog

STATM = Path("/proc/self/statm")


@pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")
async def test_memory_does_not_grow_over_twelve_steps(tmp_path: Path) -> None:
    """One thread trains. With another one for each step, as `asyncio.to_thread` takes them, malloc keeps the largest step in an arena for
    each."""
    sizes: list[int] = []

    def measure(log: StepLog) -> None:
        sizes.append(int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    env = ConversationEnvironment(
        scenarios=[
            {"id": f"cs_{n}", "user_responses": ["Hi", f"Refund order W2041{n}", "Thanks!"]}
            for n in range(4)
        ],
        max_turns=3,
    )
    async with MultiTurnAgent(AgentConfig(model_name="seed")) as agent:
        await train(
            agent=agent,
            environment=env,
            reward_fn=seed_reward(),
            num_episodes=12 * 40,
            output_dir=tmp_path,
            on_step=measure,
        )
    assert len(sizes) == 12
    assert max(sizes) < 1.2 * sizes[0]  # with `asyncio.to_thread`: 2.3 times
