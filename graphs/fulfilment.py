"""The `fulfilment` graph: an agent that gets orders to their customers."""

from functools import partial

from stateset_agents.graphs import agent
from stateset_agents.graphs.domains import FULFILMENT

build = partial(agent.build, FULFILMENT)
over = partial(agent.over, FULFILMENT)
context = partial(agent.context, FULFILMENT)
