"""The flat loop: each step plays with the version that the step before it served, and learns from exactly those tokens."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.loop import advantages, train
from stateset_agents import Score, TraceStore
from tests import ROOT


def test_it_is_one_file_of_at_most_250_lines() -> None:
    assert len((ROOT / "examples" / "loop.py").read_text().splitlines()) <= 250


async def test_each_step_plays_with_what_the_one_before_it_learned(tmp_path: Path) -> None:
    run = tmp_path / "loop"
    before, after = await train(
        run, steps=2, groups=2, group_size=4, held_out=4, learning_rate=1e-3, seed=1
    )
    assert 0 <= before <= 1
    assert 0 <= after <= 1
    with TraceStore(run / "traces.db") as store:
        graded = list(store.graded(phase="train"))
    assert len(graded) == 2 * 2 * 4
    assert all(score is not None for _, _, score, _ in graded)
    played = {
        step: {
            call.version for _, at, _, trace in graded if at == step for call in trace.model_calls
        }
        for step in (1, 2)
    }
    assert played == {1: {"policy"}, 2: {"loop-v1"}}
    first, second = (load_file(run / f"loop-v{n}" / "adapter_model.safetensors") for n in (1, 2))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_an_advantage_is_a_reward_beside_the_others_of_its_group() -> None:
    scores = [Score(value=1.0), Score(value=0.0), None, Score(value=0.5)]
    assert advantages(scores) == pytest.approx([0.5, -0.5, 0.0, 0.0])
