"""A trajectory has the tokens that were a choice of the policy, and no others."""

from typing import Any

import pytest

from stateset_agents.scenario import Scenario
from stateset_agents.trace import ModelCall, Sampling, Trace
from stateset_agents.traces.conversion import sampling
from stateset_agents.traces.dataset import OfflineDataset
from stateset_agents.trajectory import trajectory

FORCED: list[dict[str, Any]] = [
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"response_format": {"type": "json_object"}},
    {"guided_json": {}},
    {"guided_regex": "a+"},
    {"structured_outputs": {"choice": ["a", "b"]}},
    {"allowed_token_ids": [1, 2]},
    {"bad_words": ["no"]},
    {"min_tokens": 4},
    {"logit_bias": {"5": 100}},
    {"top_k": 5},
    {"a_parameter_of_tomorrow": 1},
    {"extra_body": {"guided_choice": ["a"]}},
    {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
]
FREE: list[dict[str, Any]] = [
    {},
    {"tool_choice": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"response_format": {"type": "text"}, "top_p": 1.0, "top_k": -1, "min_tokens": 0},
    {"stop": ["x"], "seed": 3, "max_tokens": 5, "user": "u", "stream": True, "logit_bias": {}},
    {"extra_body": {"return_token_ids": True}, "parallel_tool_calls": False},
]


def call(parameters: dict[str, Any], number: int = 0) -> ModelCall:
    return ModelCall(
        response_id=f"r{number}", prompt_ids=(1, 2), sampled_ids=(3,), logprobs=(-0.5,),
        **sampling({"temperature": 1.0, **parameters}),
    )  # fmt: skip


@pytest.mark.parametrize("parameters", FORCED, ids=str)
def test_forced_tokens_are_on_record_and_not_trained_on(parameters: dict[str, Any]) -> None:
    assert call(parameters).constraint
    trace = Trace(model_calls=(call(parameters), call({}, 1)))
    exact = trajectory(trace)
    assert [row.number for row in exact.rows] == [1]
    assert exact.constrained == 1
    assert OfflineDataset([trace]).plain == []


@pytest.mark.parametrize("parameters", FREE, ids=str)
def test_free_ones_are_trained_on(parameters: dict[str, Any]) -> None:
    trace = Trace(model_calls=(call(parameters),))
    assert [row.number for row in trajectory(trace).rows] == [0]
    assert OfflineDataset([trace]).plain == [trace]


def test_a_temperature_that_is_none_is_not_known() -> None:
    assert sampling({"temperature": "hot"})["temperature"] is None
    assert sampling({})["temperature"] is None


def test_a_call_at_another_temperature_than_its_episode_has_no_row() -> None:
    """A node that binds its own temperature: 0.08 nats a token, which no bound on the gap would notice."""
    calls = tuple(
        ModelCall(
            response_id=str(number), prompt_ids=(1, 2), sampled_ids=(3,), logprobs=(-1.0,), temperature=temperature
        )
        for number, temperature in enumerate((1.0, 0.9, 0.0, 1.0))
    )  # fmt: skip
    episode = Trace(
        scenario=Scenario(id="s"), sampling=Sampling(temperature=1.0), model_calls=calls
    )
    made = trajectory(episode)
    assert [row.number for row in made.rows] == [0, 3]
    assert made.constrained == 2
