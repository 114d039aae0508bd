"""The `pricing` graph: the merchant's agent for prices and promotions."""

from functools import partial

from stateset_agents.graphs import agent
from stateset_agents.graphs.domains import PRICING

build = partial(agent.build, PRICING)
over = partial(agent.over, PRICING)
context = partial(agent.context, PRICING)
