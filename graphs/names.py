"""The names of the shop's graphs, for who must not load LangGraph to know them."""

DOMAIN_GRAPHS = ("service", "sales", "returns", "fulfilment", "pricing", "risk")
"""An agent each."""
GRAPHS = (*DOMAIN_GRAPHS, "orchestrator")
"""And the conversation that is passed between them."""
