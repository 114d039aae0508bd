"""The `risk` graph: the staff's agent for orders that may be fraud."""

from functools import partial

from stateset_agents.graphs import agent
from stateset_agents.graphs.domains import RISK

build = partial(agent.build, RISK)
over = partial(agent.over, RISK)
context = partial(agent.context, RISK)
