"""What `try` says of models that act, fumble, babble and are silent."""

from typing import Any

import pytest

from stateset_agents.reporting.first_look import first_look, in_words
from stateset_agents.scenario import Fact, Goal, Scenario
from stateset_agents.trace import ModelCall, ToolCall, Trace
from tests.command_line import run

GOAL = Goal(facts=(Fact(name="f", any_of=("shipped",)),))


def episode(
    number: int, *calls: tuple[str, str], says: str = "shipped", finish: str = "stop", **fields: Any
) -> Trace:
    tools = tuple(
        ToolCall(
            id=str(n),
            name=name,
            arguments={},
            status="invalid" if error else "done",
            result={"error": error} if error else {},
        )
        for n, (name, error) in enumerate(calls)
    )
    answer = ModelCall(
        response_id=str(number), prompt_ids=(1,), sampled_ids=(2,) * 10, logprobs=(-1.0,) * 10, finish_reason=finish, offered=3,
        seconds=0.5,
    )  # fmt: skip
    chosen: dict[str, Any] = {
        "scenario": Scenario(id=str(number), goal=GOAL), "model_calls": (answer,), "tool_calls": tools,
        "messages": ({"role": "user", "content": "?"}, {"role": "assistant", "content": says}), **fields,
    }  # fmt: skip
    return Trace(**chosen)


def story(*traces: Trace) -> str:
    return "\n".join(in_words(first_look(traces)))


def test_a_model_that_acts() -> None:
    text = story(episode(1, ("look", "")), episode(2, ("look", ""), says="no idea"))
    assert "calls tools: in 2 of 2" in text
    assert "right names: 2 of 2" in text
    assert "reaches the goal: in 1 of 2" in text
    assert "next: it acts, and sometimes succeeds: train it with GRPO" in text


def test_a_model_that_fumbles() -> None:
    text = story(
        episode(1, ("lokup", "no_such_tool"), ("look", "bad_arguments"), says="?"),
        episode(2, ("look", "bad_arguments"), says="?"),
    )
    assert "right names: 2 of 3" in text
    assert "right arguments: 0 of 2" in text
    assert "gets them wrong: a warm start" in text


def test_a_model_that_babbles() -> None:
    text = story(*(episode(n, says='<tool_call>{"name": "lo', finish="length") for n in range(4)))
    assert "unread calls: 4 answers" in text
    assert "stops by itself: in 0 of 4" in text
    assert "next: most answers are cut off" in text
    assert "it rarely calls tools" in text


def test_a_model_that_was_never_called() -> None:
    text = story(episode(1, model_calls=(), messages=(), status="failed", error="KeyError: 'x'"))
    assert "broken off: 1 of 1 episodes with: KeyError" in text
    assert "next: the model was never called" in text


@pytest.mark.parametrize("model", ["seed"])
def test_the_command(model: str, tmp_path: Any) -> None:
    printed = run("try", model, "--episodes", "3", "--out", str(tmp_path))
    assert "calls tools      in 3 of 3 episodes" in printed
    assert "next " in printed
