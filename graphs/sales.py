"""The `sales` graph: an agent that finds, quotes and sells."""

from functools import partial

from stateset_agents.graphs import agent
from stateset_agents.graphs.domains import SALES

build = partial(agent.build, SALES)
over = partial(agent.over, SALES)
context = partial(agent.context, SALES)
