"""The `service` graph: an agent that verifies, looks up, changes with consent, and hands over."""

from functools import partial

from stateset_agents.graphs import agent
from stateset_agents.graphs.agent import STEP_LIMIT
from stateset_agents.graphs.domains import SERVICE

__all__ = ["STEP_LIMIT", "build", "context", "over"]

build = partial(agent.build, SERVICE)
over = partial(agent.over, SERVICE)
context = partial(agent.context, SERVICE)
