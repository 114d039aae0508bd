"""The gradient over a trie is the gradient over the rows, and a step moves what it is told to."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from benchmarks.trainer import in_float64
from stateset_agents.errors import BadInput, NotExact, RunBroken
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.trainers.model import load_model
from stateset_agents.trainers.packing import tree_attention
from stateset_agents.trainers.packing.batches import Sample, batches
from stateset_agents.trainers.reading import why_not_shared
from stateset_agents.trainers.tree_trainer import TreeGRPOTrainer
from stateset_agents.trajectory import Row, Trajectory, trajectory
from tests.small import (
    apart,
    episodes,
    gradient,
    lora,
    plain_logprobs,
    sample,
    saved,
    small_model,
    trainer,
)

WORTH = [1.0, -1.0, 0.5, -0.5]


def backward(learner: TreeGRPOTrainer, samples: list[Sample]) -> torch.Tensor:
    """The gradient of a step, without taking it."""
    for batch in batches(samples, learner.config.tokens_per_batch, every=learner.beta != 0):
        torch.autograd.backward(learner.batch_loss(batch, samples))
    return gradient(learner.model)


def plain_loss(learner: TreeGRPOTrainer, samples: list[Sample]) -> torch.Tensor:
    """DAPO's objective written out, row by row: clipped ratio, mean over all sampled tokens."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for drawn in samples:
        for row, advantage in zip(drawn.trajectory.rows, drawn.advantages, strict=True):
            logprobs = plain_logprobs(learner.model, row)
            ratio = (logprobs - torch.tensor(row.logprobs)).exp()
            clipped = ratio.clamp(1 - learner.epsilon_low, 1 + learner.epsilon_high)
            total = total - torch.min(ratio * advantage, clipped * advantage).sum()
            tokens += len(row.sampled)
    return total / tokens


def test_the_gradient_over_the_trie_is_the_gradient_over_the_rows(tmp_path: Path) -> None:
    learner = trainer(tmp_path, algorithm="dapo")
    in_float64(learner.model)
    samples = [sample(episode, worth) for episode, worth in zip(episodes(1), WORTH, strict=True)]
    shared = backward(learner, samples)
    torch.autograd.backward(plain_loss(learner, samples))
    assert apart(shared, gradient(learner.model)) <= 1e-12
    (batch,) = batches(samples, learner.config.tokens_per_batch)
    assert batch.ids.size(1) < batch.positions_in_rows / 2


def test_float32_is_no_farther_from_float64_than_rows_are(tmp_path: Path) -> None:
    samples = [sample(episode, worth) for episode, worth in zip(episodes(1), WORTH, strict=True)]
    learner = trainer(tmp_path, algorithm="dapo")
    shared = backward(learner, samples)
    torch.autograd.backward(plain_loss(learner, samples))
    rows = gradient(learner.model)
    in_float64(learner.model)
    exact = backward(learner, samples)
    assert apart(shared, exact) < 1e-5
    assert apart(shared, exact) < 4 * apart(rows, exact)


def test_bfloat16_computes_close_to_float32_and_trains_float32_weights(tmp_path: Path) -> None:
    samples = [sample(episode, worth) for episode, worth in zip(episodes(1), WORTH, strict=True)]
    fine = backward(trainer(tmp_path, algorithm="dapo"), samples)
    learner = trainer(tmp_path, algorithm="dapo", precision="bf16")
    assert apart(backward(learner, samples), fine) < 0.1
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}


def test_a_weight_of_one_moves_by_a_learning_rate_that_bfloat16_cannot_show(tmp_path: Path) -> None:
    learner = trainer(tmp_path, learning_rate=5e-6, precision="bf16")
    weight = learner.model.model.norm.weight
    assert torch.equal(weight, torch.ones_like(weight))
    learner.learn(
        {"default": [sample(episode, w) for episode, w in zip(episodes(1), WORTH, strict=True)]}
    )
    assert (weight - 1).abs().max() > 0
    naive = torch.ones(1, dtype=torch.bfloat16) - 5e-6  # what a bf16 default does to it
    assert float(naive) == 1.0


def test_log_probabilities_are_those_of_the_plain_model(tmp_path: Path) -> None:
    learner = trainer(tmp_path, lora(tmp_path))
    (batch,) = batches([sample(episode, 1.0) for episode in episodes(2)], 10_000)
    with torch.no_grad():
        ours, entropy = learner.logprobs(batch)
        for number, episode in enumerate(episodes(2)):
            wanted = torch.cat([plain_logprobs(learner.model, row) for row in episode.rows])
            torch.testing.assert_close(
                ours[number, : len(wanted)].double(), wanted, rtol=1e-4, atol=1e-4
            )
    assert (entropy >= 0).all()


def test_log_probabilities_are_of_the_sampling_distribution(tmp_path: Path) -> None:
    """At temperature 0.6 the first ratio is 1 only if the trainer divides the logits as well."""
    learner = trainer(tmp_path, temperature=0.6)
    group = episodes(4)
    (batch,) = batches([sample(episode, 1.0) for episode in group], 10_000)
    with torch.no_grad():
        warm, _ = learner.logprobs(batch)
        wanted = torch.cat([plain_logprobs(learner.model, row, 0.6) for row in group[0].rows])
        naive = torch.cat([plain_logprobs(learner.model, row) for row in group[0].rows])
    torch.testing.assert_close(warm[0, : len(wanted)].double(), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(naive, wanted, atol=1e-2)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"])
def test_splitting_leaves_the_gradient_unchanged(tmp_path: Path, algorithm: str) -> None:
    """Into batches, and a trajectory's tokens into more calls. TRL's own `grpo` counts rows: cut in two, a trajectory weighs
    twice."""
    learner = trainer(tmp_path, algorithm=algorithm)
    in_float64(learner.model)
    samples = [sample(episode, worth) for episode, worth in zip(episodes(3), WORTH, strict=True)]
    whole = backward(learner, samples)
    learner.config = learner.config.model_copy(update={"tokens_per_batch": 16})
    assert len(batches(samples, 16)) == 4
    assert apart(backward(learner, samples), whole) <= 1e-12
    assert apart(backward(learner, [halved(drawn) for drawn in samples]), whole) <= 1e-12
    if algorithm == "grpo":
        rows = [
            sample(Trajectory(trace_id="", rows=(row,)), worth)
            for drawn in samples
            for row, worth in zip(drawn.trajectory.rows, drawn.advantages, strict=True)
        ]
        assert apart(backward(learner, rows), whole) > 0.1


def halved(drawn: Sample) -> Sample:
    """The same tokens, each call of more than one in two."""
    rows: list[Row] = []
    worth: list[float] = []
    for row, advantage in zip(drawn.trajectory.rows, drawn.advantages, strict=True):
        middle = len(row.sampled) // 2
        for start, end in ((0, middle), (middle, len(row.sampled))):
            if start < end:
                rows.append(
                    Row(
                        prompt=(*row.prompt, *row.sampled[:start]), sampled=row.sampled[start:end],
                        logprobs=row.logprobs[start:end], node=row.node, version=row.version, number=len(rows),
                    )
                )  # fmt: skip
                worth.append(advantage)
    return Sample(
        trajectory=Trajectory(trace_id=drawn.trajectory.trace_id, rows=tuple(rows)),
        advantages=tuple(worth),
    )


def test_a_deep_conversation_is_computed_twice_and_its_gradient_is_the_same(tmp_path: Path) -> None:
    learner = trainer(tmp_path, algorithm="dapo")
    in_float64(learner.model)
    samples = [sample(episode, 1.0) for episode in episodes(8, count=1, calls=6)]
    whole = backward(learner, samples)
    learner.config = learner.config.model_copy(update={"tokens_per_batch": 16})
    (batch,) = batches(samples, 16)
    assert batch.deep
    assert apart(backward(learner, samples), whole) <= 1e-12


def test_episodes_without_advantage_are_skipped_but_count(tmp_path: Path) -> None:
    group = episodes(5)
    assert batches([sample(episode, 0.0) for episode in group], 1000) == []
    (batch,) = batches([sample(episode, n == 0) for n, episode in enumerate(group)], 1000)
    assert len(batch.samples) == 1
    learner = trainer(tmp_path, algorithm="dapo")
    few = [sample(episode, 1.0 if n == 0 else 0.0) for n, episode in enumerate(group)]
    alone = [sample(group[0], 1.0)]
    tokens = sum(episode.tokens for episode in group)
    ratio = backward(learner, few).norm() / backward(learner, alone).norm()
    assert float(ratio) == pytest.approx(group[0].tokens / tokens, rel=1e-5)


def test_the_kl_term_pulls_episodes_without_advantage_back_too(tmp_path: Path) -> None:
    learner = trainer(tmp_path, lora(tmp_path), beta=0.1)
    update = learner.learn({"default": [sample(episode, 0.0) for episode in episodes(5)]})
    assert update.grad_norm > 0
    assert update.kl > 0


def test_a_step_moves_only_the_adapter(tmp_path: Path) -> None:
    learner = trainer(tmp_path, lora(tmp_path))
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    samples = [sample(episode, worth) for episode, worth in zip(episodes(6), WORTH, strict=True)]
    update = learner.learn({"default": samples})
    assert update.stepped
    moved = {n for n, p in learner.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved
    assert all("lora" in name for name in moved)


def test_a_gradient_that_is_no_number_stops_the_step_and_moves_nothing(tmp_path: Path) -> None:
    learner = trainer(tmp_path)
    before = [p.detach().clone() for p in learner.model.parameters()]
    with pytest.raises(RunBroken, match=r"finite.*lower the learning rate"):
        learner.learn({"default": [sample(episode, float("inf")) for episode in episodes(6)]})
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))


def test_tokens_of_another_policy_are_refused_though_their_ratios_average_to_one(
    tmp_path: Path,
) -> None:
    learner = trainer(tmp_path)
    samples = [sample(episode, worth) for episode, worth in zip(episodes(6), WORTH, strict=True)]
    with pytest.raises(RunBroken, match="nats a token"):
        learner.learn({"default": samples}, max_gap=0.1)


def test_truncated_weights_bound_the_effective_sample_size(tmp_path: Path) -> None:
    learner = trainer(tmp_path, importance="decoupled")
    samples = [sample(episode, worth) for episode, worth in zip(episodes(6), WORTH, strict=True)]
    before = [p.detach().clone() for p in learner.model.parameters()]
    update = learner.learn({"default": samples}, least_ess=0.9999)
    assert 0 < update.ess < 0.9999
    assert not update.stepped
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))
    assert learner.learn({"default": samples}, least_ess=0.01).stepped


def test_models_whose_layers_read_rows_fall_back_to_them_and_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model(layer_types=["full_attention", "sliding_attention"], use_sliding_window=True,
                        sliding_window=5)  # fmt: skip
    learner = trainer(tmp_path, model, full=True, algorithm="dapo")
    assert "Prefixes are not shared in Qwen2ForCausalLM" in capsys.readouterr().out
    assert not learner.reading.shared
    in_float64(learner.model)
    samples = [sample(episode, worth) for episode, worth in zip(episodes(1), WORTH, strict=True)]
    rows = backward(learner, samples)
    torch.autograd.backward(plain_loss(learner, samples))
    assert apart(rows, gradient(learner.model)) <= 1e-12


def test_a_window_wider_than_what_is_tried_out_is_found_as_well(tmp_path: Path) -> None:
    """Mistral's configuration names no kinds of layers, and its window has an effect only beyond its width."""
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=16, attn_implementation=tree_attention.NAME,
        )
    )  # fmt: skip
    assert "slides over 16 tokens" in str(why_not_shared(model))
    model.config.sliding_window = None
    assert why_not_shared(model) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4))
def test_any_group_gives_the_rows_gradient(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, calls: int
) -> None:
    learner = trainer(tmp_path_factory.mktemp("t"), algorithm="dapo")
    in_float64(learner.model)
    samples = [
        sample(episode, float(n % 3 - 1)) for n, episode in enumerate(episodes(seed, count, calls))
    ]
    if not any(any(drawn.advantages) for drawn in samples):
        return
    shared = backward(learner, samples)
    torch.autograd.backward(plain_loss(learner, samples))
    assert apart(shared, gradient(learner.model)) <= 1e-12


def test_a_trace_without_token_ids_is_refused() -> None:
    trace = Trace(model_calls=(ModelCall(response_id="r", node="policy"),))
    assert trace.exactness == "text"
    with pytest.raises(NotExact, match="return_token_ids"):
        trajectory(trace)


def test_log_probabilities_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one log-probability per sampled token"):
        ModelCall(response_id="r", node="n", prompt_ids=(1,), sampled_ids=(2, 3), logprobs=(-1.0,))


def test_only_named_nodes_train() -> None:
    calls = tuple(
        ModelCall(response_id=n, node=n, prompt_ids=(1,), sampled_ids=(2,), logprobs=(-1.0,))
        for n in ("plan", "act", "plan")
    )
    rows = trajectory(Trace(model_calls=calls), nodes=["plan"]).rows
    assert [row.node for row in rows] == ["plan", "plan"]


def test_a_conversation_beyond_the_models_context_is_refused_by_name(tmp_path: Path) -> None:
    learner = trainer(tmp_path, small_model(max_position_embeddings=16), full=True)
    with pytest.raises(RunBroken, match=r"context of 16 tokens, found \d+ in trace '0'"):
        learner.learn({"default": [sample(episode, 1.0) for episode in episodes(1)]})


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    lora(tmp_path / "one").save_pretrained(str(tmp_path / "adapter"))
    other = saved(tmp_path / "other", hidden_size=64)
    with pytest.raises(BadInput, match=r"Expected an adapter of .* that does not fit"):
        load_model(other, adapters={"default": tmp_path / "adapter"})


def test_an_empty_trajectory_is_in_no_batch() -> None:
    assert batches([sample(Trajectory(trace_id="empty", rows=()), 1.0)], 1000, every=True) == []
