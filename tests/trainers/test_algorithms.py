"""Each algorithm is its paper's closed form, over the span of a trajectory, in however many calls it was sampled."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.trainer import in_float64
from stateset_agents.errors import BadInput
from stateset_agents.jobs.config import check_config
from stateset_agents.trainers.algorithms import ALGORITHMS
from stateset_agents.trainers.algorithms.algorithm import centred, normalised
from stateset_agents.trainers.algorithms.dapo import overlong
from stateset_agents.trainers.algorithms.rejection import best
from stateset_agents.trainers.algorithms.rloo import against_the_others
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.packing.batches import batches
from stateset_agents.trajectory import Row, Trajectory
from tests import ROOT
from tests.small import (
    apart,
    episodes,
    gradient,
    lora,
    plain_logprobs,
    sample,
    small_model,
    trainer,
)

REWARDS = [1.0, 0.0, 0.25, 0.5]


def near(group: list[Trajectory], model: object) -> list[Trajectory]:
    """The same tokens, recorded a little off what the model says, so that some ratios are clipped and some are not."""
    made = []
    for number, trajectory in enumerate(group):
        rows = []
        for row in trajectory.rows:
            now = plain_logprobs(model, row).tolist()
            off = [p + 0.3 * math.sin(7 * number + 3 * n) for n, p in enumerate(now)]
            rows.append(
                Row(
                    prompt=row.prompt, sampled=row.sampled, logprobs=tuple(torch.tensor(off).tolist()), node=row.node,
                    version=row.version, number=row.number,
                )
            )  # fmt: skip
        made.append(Trajectory(trace_id=trajectory.trace_id, rows=tuple(rows)))
    return made


def closed_form(name: str, model: object, group: list[Trajectory], most: int) -> torch.Tensor:
    """The loss as its paper writes it, with its own advantages and clip, and its own mean."""
    mean = sum(REWARDS) / 4
    deviation = math.sqrt(sum((r - mean) ** 2 for r in REWARDS) / 4)
    losses, tokens = [], 0
    for reward, trajectory in zip(REWARDS, group, strict=True):
        now = torch.cat([plain_logprobs(model, row) for row in trajectory.rows])
        then = torch.tensor([p for row in trajectory.rows for p in row.logprobs]).double()
        ratio = (now - then).exp()
        a = (reward - mean) / deviation
        match name:
            case "grpo":
                losses.append(torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a).mean() / 4)
            case "dr_grpo":
                a = reward - mean
                losses.append(torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a).sum() / most / 4)
            case "dapo":
                losses.append(torch.min(ratio * a, ratio.clamp(0.8, 1.28) * a).sum())
            case "gspo":
                s = (now - then).mean().exp()
                losses.append(torch.min(s * a, s.clamp(1 - 3e-4, 1 + 4e-4) * a) / 4)
            case "cispo":
                losses.append((ratio.detach().clamp(max=5.0) * a * now).sum())
            case "rloo":
                a = reward - (sum(REWARDS) - reward) / 3
                losses.append((ratio * a).sum() / 4)
            case "rejection":
                a = float(reward == max(REWARDS))
                losses.append(torch.min(ratio * a, ratio.clamp(0.8, 1.28) * a).sum())
        tokens += len(now)
    total = -torch.stack(losses).sum()
    return total / tokens if name in ("dapo", "cispo", "rejection") else total


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_it_is_the_closed_form_of_its_paper(tmp_path: Path, name: str) -> None:
    learner = trainer(tmp_path, in_float64(small_model()), full=True, algorithm=name, max_tokens=40)
    group = near(episodes(1), learner.model)
    worth = ALGORITHMS[name].advantages(REWARDS)
    samples = [sample(trajectory, a) for trajectory, a in zip(group, worth, strict=True)]
    ours = torch.zeros((), dtype=torch.float64)
    for batch in batches(samples, 10_000):
        ours = ours + learner.batch_loss(batch, samples)
    torch.autograd.backward(ours)
    trained = gradient(learner.model)
    wanted = closed_form(name, learner.model, group, 40)
    torch.autograd.backward(wanted)
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert apart(trained, gradient(learner.model)) <= 1e-6  # TRL keeps advantages in float32


def test_the_kl_is_to_the_model_without_its_adapter(tmp_path: Path) -> None:
    """k3 on each token, times its ratio, so that its gradient is the KL's (DeepSeek-V3.2, arXiv 2512.02556): r (exp(ref - now)
    - (ref - now) - 1), weighted by beta."""
    model = lora(tmp_path)
    with_kl = trainer(tmp_path / "a", model, algorithm="dapo", beta=0.5)
    group = near(episodes(1), model)
    samples = [sample(trajectory, 0.0) for trajectory in group]
    (batch,) = batches(samples, 10_000, every=True)
    loss = with_kl.batch_loss(batch, samples).item()
    rows = [row for trajectory in group for row in trajectory.rows]
    with torch.no_grad():
        now = torch.cat([plain_logprobs(model, row) for row in rows])
        with model.disable_adapter():
            ref = torch.cat([plain_logprobs(model, row) for row in rows])
    ratio = (now - torch.tensor([p for row in rows for p in row.logprobs])).exp()
    gap = ref - now
    assert loss == pytest.approx(0.5 * float((ratio * (gap.exp() - gap - 1)).mean()), rel=1e-4)


def test_decoupled_weighs_by_what_lies_between_truncated_a_token(tmp_path: Path) -> None:
    """arXiv 2505.24298: weight min(pi/mu, cap), the ratio against the policy before the step, which is 1."""
    learner = trainer(tmp_path, in_float64(small_model()), full=True, algorithm="dapo",
                      importance="decoupled", importance_cap=1.1)  # fmt: skip
    group = near(episodes(1), learner.model)
    samples = [
        sample(trajectory, w) for trajectory, w in zip(group, (1.0, -1.0, 0.5, -0.5), strict=True)
    ]
    (batch,) = batches(samples, 10_000)
    torch.autograd.backward(learner.batch_loss(batch, samples))
    trained = gradient(learner.model)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for trajectory in samples:
        for row, a in zip(trajectory.trajectory.rows, trajectory.advantages, strict=True):
            now = plain_logprobs(learner.model, row)
            weight = (now.detach() - torch.tensor(row.logprobs)).exp().clamp(max=1.1)
            total = total - (weight * a * now).sum()
            tokens += len(row.sampled)
    torch.autograd.backward(total / tokens)
    assert apart(trained, gradient(learner.model)) <= 1e-6


def test_tapered_weighs_the_bad_by_how_likely_the_whole_of_it_still_is(tmp_path: Path) -> None:
    """TOPR, arXiv 2503.14286: 1 for what was good, min(1, pi/mu over the whole trajectory) for what was bad. A ratio a token is
    near 1 long after the policy would never do that again, and pushes it on and on."""
    learner = trainer(
        tmp_path, in_float64(small_model()), full=True, algorithm="dapo", importance="tapered"
    )
    group = near(episodes(1), learner.model)
    samples = [
        sample(trajectory, w) for trajectory, w in zip(group, (1.0, -1.0, 0.5, -0.5), strict=True)
    ]
    (batch,) = batches(samples, 10_000)
    torch.autograd.backward(learner.batch_loss(batch, samples))
    trained = gradient(learner.model)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for trajectory in samples:
        now = torch.cat([plain_logprobs(learner.model, row) for row in trajectory.trajectory.rows])
        then = torch.tensor([p for row in trajectory.trajectory.rows for p in row.logprobs])
        a = trajectory.advantages[0]
        weight = (now.detach() - then).sum().exp().clamp(max=1.0) if a < 0 else 1.0
        total = total - (weight * a * now).sum()
        tokens += len(now)
    torch.autograd.backward(total / tokens)
    assert apart(trained, gradient(learner.model)) <= 1e-6


def naive(rewards: list[float | None]) -> list[float]:
    """The mistake: an episode that could not be scored counts as 0."""
    filled = [0.0 if r is None else r for r in rewards]
    mean = sum(filled) / len(filled)
    return [r - mean for r in filled]


def test_what_could_not_be_scored_is_no_zero() -> None:
    assert normalised([1, 0, 0, 1]) == [1, -1, -1, 1]
    assert normalised([1, None, 1]) == [0, 0, 0]
    assert naive([1, None, 1])[0] > 0


def test_without_the_deviation_a_small_difference_stays_small() -> None:
    """One more call costs an episode 0.005: no reason to learn as much from it as from a success."""
    assert centred([1.0, 0.0]) == [0.5, -0.5]
    assert normalised([0.975, 0.97]) == pytest.approx([1, -1])
    assert centred([0.975, 0.97]) == pytest.approx([0.0025, -0.0025])
    assert centred([0.1 + 0.2, 0.3]) == [0, 0]


def test_the_others_are_the_baseline() -> None:
    assert against_the_others([1.0, 0.0, None, 0.0]) == [1.0, -0.5, 0.0, -0.5]


def test_rejection_keeps_the_best_of_a_group_and_nothing_of_equals() -> None:
    assert best([0.2, 1.0, None, 1.0]) == [0, 1, 0, 1]
    assert best([0.5, 0.5]) == [0, 0]
    assert best([None, 1.0]) == [0, 0]


def test_an_episode_that_grows_too_long_pays_a_line() -> None:
    assert [overlong(tokens, 100, 200) for tokens in (50, 100, 150, 200, 900)] == [0, 0, 0.5, 1, 1]


def test_senseless_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        normalised([1.0])
    with pytest.raises(ValueError, match="finite"):
        centred([1.0, float("nan")])


@given(st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=2, max_size=16))
def test_advantages_of_a_group_sum_to_zero(rewards: list[float | None]) -> None:
    for of in (normalised, centred, against_the_others):
        advantages = of(rewards)
        assert sum(advantages) == pytest.approx(0, abs=1e-4)
        assert all(a == 0 for a, r in zip(advantages, rewards, strict=True) if r is None)


@given(
    st.lists(st.integers(-20, 20), min_size=2, max_size=8), st.integers(1, 5), st.integers(-9, 9)
)
def test_scale_and_shift_of_rewards_change_nothing(
    rewards: list[int], scale: int, shift: int
) -> None:
    moved = [float(scale * r + shift) for r in rewards]
    plain = [float(r) for r in rewards]
    assert normalised(moved) == pytest.approx(normalised(plain), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"algorithm": "rloo", "clip_high": 0.3}, "clip-high: not used by rloo"),
        ({"resample": 2}, "resample: not used by dr_grpo, only by dapo"),
        ({"algorithm": "dapo", "overlong": (9, 3)}, "overlong: expected 0 < from < to"),
        ({"importance_cap": 3.0}, "importance-cap: used only with --importance decoupled"),
        ({"importance": "tapered", "importance_cap": 3.0}, "importance-cap: used only with"),
        ({"full": True, "rank": 4}, "rank: there is no adapter"),
        ({"full": True, "beta": 0.1}, "beta: expected 0"),
        ({"forks": 7}, "forks: expected two whole episodes"),
        ({"forks": 2, "credit": "node"}, "forks: used only with --credit trajectory"),
        ({"limit_rate": 2.0}, "limit-rate: used only with --limit"),
        ({"limits": {"violations": 2}}, "--limit: expected a share"),
        ({"patience": 4}, "patience: used only with --early-stopping"),
        ({"kl_target": 0.1}, "kl-target: used only with --auto-adjust"),
        ({"adapters": {"a": ("x",), "b": ("x",)}}, "--adapter: expected each node in one"),
        ({"adapters": {"a": ("x",)}, "nodes": ("x",)}, "--node: not used with --adapter"),
        ({"node_rewards": {"a": "rules"}}, "node-reward: used only with --credit node"),
        ({"epochs": 2}, "epochs: used only when training from a store"),
        ({"from_traces": "x", "group_size": 4}, "group-size: not used when training from a store"),
        ({"warm_traces": 20}, "warm-traces: used only with --warm-start"),
        ({"group_size": 1}, "--group-size"),
        ({"algorithm": "ppo"}, "--algorithm"),
        ({"learning_rat": 1}, "--learning-rat"),
    ],
)  # fmt: skip
def test_a_setting_that_a_mode_does_not_use_is_refused_by_its_option(
    options: dict[str, object], error: str
) -> None:
    with pytest.raises(BadInput, match=re.escape(error)):
        check_config(options)


def test_every_algorithm_is_in_the_documents_table() -> None:
    table = (ROOT / "docs" / "training.md").read_text()
    for algorithm in ALGORITHMS.values():
        assert f"| `{algorithm.name}` | `{algorithm.equation}` | {algorithm.source} |" in table, (
            algorithm.name
        )
    assert TrainConfig().algorithm in ALGORITHMS
