"""Compiled LangGraph graphs: the agents, and the conversation that makes an episode."""
