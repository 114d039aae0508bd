"""The names that the command line knows are those of the graphs."""

from stateset_agents.graphs import orchestrator
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.graphs.names import GRAPHS


def test_the_names_are_those_of_the_graphs() -> None:
    assert tuple(GRAPHS) == (*DOMAINS, orchestrator.NAME)
