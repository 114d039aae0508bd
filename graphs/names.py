"""The names of the shop's graphs, for code that must not load LangGraph."""

DOMAIN_GRAPHS = ("service", "sales", "returns", "fulfilment", "pricing", "risk")
"""One agent each."""
GRAPHS = (*DOMAIN_GRAPHS, "orchestrator")
"""With the orchestrator."""
