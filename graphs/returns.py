"""The `returns` graph: an agent that takes goods back."""

from functools import partial

from stateset_agents.graphs import agent
from stateset_agents.graphs.domains import RETURNS

build = partial(agent.build, RETURNS)
over = partial(agent.over, RETURNS)
context = partial(agent.context, RETURNS)
