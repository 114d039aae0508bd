"""Any graph's run can be read: messages, or calls and tools between an input and an output; in the terminal and in the report."""

import pytest

from stateset_agents.graphs.custom import CustomGraph
from stateset_agents.reporting.html import talk
from stateset_agents.reporting.terminal import show_trace
from stateset_agents.reporting.transcript import lines_of
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling, ToolCall, Trace
from tests.patterns import Scripted
from tests.two_nodes import graph


async def test_an_episode_of_a_graph_without_messages_is_no_blank_panel(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Scripted(answer=lambda messages: "<b>Sure</b>, it rains.")
    scenario = Scenario(id="s", input={"question": "the weather?"})
    trace = await CustomGraph(graph, "two").play_episode(scenario, model, Sampling())
    lines = lines_of(trace)
    assert [line.kind for line in lines] == ["input", "agent", "agent", "output"]
    assert [line.speaker for line in lines] == ["input", "ask", "tell", "output"]
    card = talk("before", trace)
    assert "the weather?" in card
    assert "&lt;b&gt;Sure" in card
    show_trace(trace)
    shown = capsys.readouterr().out
    assert "ask      <b>Sure</b>, it rains." in shown
    assert "output   {" in shown


def test_tools_are_shown_once_and_errors_last() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    tools = (
        ToolCall(id="1", name="look", arguments={}, status="done", result={"price": 3}),
        ToolCall(id="2", name="pay", arguments={"to": "me"}, status="failed", result="no till"),
    )
    request = {
        "role": "assistant",
        "content": [{"type": "text", "text": "Wait."}],
        "tool_calls": [call],
    }
    talked = Trace(
        messages=({"role": "user", "content": "hi"}, request),
        tool_calls=tools,
        status="failed",
        error="gone",
    )
    assert [(line.speaker, line.text) for line in lines_of(talked)] == [
        ("customer", "hi"), ("agent", "Wait."), ("calls", "look {}"), ("failed", "gone"),
    ]  # fmt: skip
    silent = Trace(input={"a": 1}, tool_calls=tools)
    assert [line.text for line in lines_of(silent)] == [
        '{"a": 1}', "look {}", '{"price": 3}', 'pay {"to": "me"}', "failed: no till",
    ]  # fmt: skip
