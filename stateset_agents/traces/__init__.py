"""Traces kept: recorded from any LangGraph graph, stored exactly, verified, forgotten, exported."""
