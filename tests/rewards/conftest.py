"""Episodes of mixed quality, played once for the tests of rewards."""

import asyncio
import itertools

import pytest

from stateset_agents.graphs.mixed_quality import Mixed, mixed
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, scenarios


@pytest.fixture(scope="session")
def episodes() -> list[Mixed]:
    """A thousand unseen episodes of mixed quality in five languages."""
    every = itertools.islice(
        scenarios(
            seed=910_000,
            split="held_out",
            intents=ALL_INTENTS,
            complications=2,
            locales=("en", "de", "es", "fr", "pt"),
        ),
        1000,
    )

    async def play() -> list[Mixed]:
        return [variant async for variant in mixed(list(every), seed=4)]

    return asyncio.run(play())
