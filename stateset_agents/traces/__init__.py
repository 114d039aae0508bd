"""Traces: recorded from any LangGraph graph, stored exactly, verified, erased, exported."""
