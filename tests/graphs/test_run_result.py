"""How a run ended is data, whatever the graph gives or raises."""

from typing import Any

from langgraph.errors import GraphRecursionError

from stateset_agents.graphs.run_result import result_of


async def gives(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


async def test_a_graph_that_writes_none_of_its_output_is_completed_with_an_empty_state() -> None:
    """LangGraph gives None for it."""
    result = await result_of(gives(None))
    assert (result.state, result.status, result.error) == ({}, "completed", None)


async def test_an_error_is_data() -> None:
    failed = await result_of(gives(ValueError("no")))
    assert (failed.state, failed.status, failed.error) == ({}, "failed", "ValueError: no")
    truncated = await result_of(gives(GraphRecursionError("25 steps")))
    assert truncated.status == "truncated"
