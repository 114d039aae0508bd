"""The gradient over a trie is the gradient over the rows, and the loss is TRL's."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stateset_agents.errors import NotExact
from stateset_agents.jobs import SEED_POLICY
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.trainers.grpo import TreeGRPOTrainer, grpo_trainer, lora_model, passes
from stateset_agents.trajectory import Row, Trajectory, trajectory


def new_trainer(tmp_path: Path, **options: float) -> TreeGRPOTrainer:
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    model = lora_model(str(SEED_POLICY), rank=4, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    settings: Any = {"learning_rate": 1e-3, "group_size": 4, "temperature": 1.0, **options}
    return grpo_trainer(model, tokenizer, tmp_path, **settings)


def episodes(seed: int, count: int = 4, calls: int = 3) -> list[Trajectory]:
    """Episodes of a group: one prompt, answers that differ, a tool's answer after each."""
    rng = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [rng.randrange(3, 1000) for _ in range(n)]

    prefix, made = ids(30), []
    for number in range(count):
        seen, rows = list(prefix), []
        for _ in range(calls):
            sampled = ids(rng.randint(2, 9))
            rows.append(
                Row(
                    prompt=tuple(seen),
                    sampled=tuple(sampled),
                    logprobs=tuple(rng.uniform(-8, -5) for _ in sampled),
                    node="policy",
                    version="policy",
                )
            )
            seen += sampled + ids(6)
        made.append(Trajectory(trace_id=str(number), rows=tuple(rows)))
    return made


def plain_loss(
    trainer: TreeGRPOTrainer, group: list[Trajectory], advantages: list[float]
) -> torch.Tensor:
    """The same objective written out row by row: clipped ratio, mean over all sampled tokens."""
    total, tokens = torch.zeros(()), 0
    for episode, advantage in zip(group, advantages, strict=True):
        for row in episode.rows:
            only = Trajectory(trace_id="", rows=(row,))
            (part,) = passes([only], [1.0])
            logprobs, _ = trainer.logprobs(trainer.model, part)
            ratio = (logprobs[0] - torch.tensor(row.logprobs)).exp()
            clipped = ratio.clamp(1 - trainer.epsilon_low, 1 + trainer.epsilon_high)
            total = total - torch.min(ratio * advantage, clipped * advantage).sum()
            tokens += len(row.sampled)
    return total / tokens


def gradients(trainer: TreeGRPOTrainer) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return found


def test_the_gradient_over_the_trie_is_the_gradient_over_the_rows(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    trainer.model.double()
    group, advantages = episodes(1), [1.0, -1.0, 0.5, -0.5]
    tokens = sum(episode.tokens for episode in group)
    (part,) = passes(group, advantages)
    loss = trainer.compute_loss(trainer.model, trainer._inputs(part, tokens))
    torch.autograd.backward(loss)
    shared = gradients(trainer)
    reference = plain_loss(trainer, group, advantages)
    torch.autograd.backward(reference)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    assert part.ids.size(1) < sum(len(r.prompt) + len(r.sampled) for e in group for r in e.rows) / 2
    for name, gradient in gradients(trainer).items():
        # Rotary angles are float32 in transformers, so a single element may be off by more than the whole.
        assert (shared[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def test_tree_logprobs_are_those_of_the_plain_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    trainer = new_trainer(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(SEED_POLICY, dtype=torch.float32)
    group = episodes(2)
    (part,) = passes(group, [1.0] * 4)
    with torch.no_grad(), trainer.model.disable_adapter():
        ours, _ = trainer.logprobs(trainer.model, part)
        for number, row in enumerate(r for e in group for r in e.rows):
            logits = plain(torch.tensor([[*row.prompt, *row.sampled]])).logits[0]
            wanted = torch.log_softmax(logits, -1)[len(row.prompt) - 1 : -1]
            wanted = wanted.gather(1, torch.tensor(row.sampled)[:, None]).squeeze(1)
            torch.testing.assert_close(ours[number, : len(wanted)], wanted, rtol=1e-4, atol=1e-4)


def test_episodes_split_over_passes_give_the_same_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(tmp_path)
    trainer.model.double()
    group, advantages = episodes(3), [1.0, -1.0, 1.0, -1.0]
    tokens = sum(episode.tokens for episode in group)
    for part in passes(group, advantages):
        torch.autograd.backward(trainer.compute_loss(trainer.model, trainer._inputs(part, tokens)))
    whole = gradients(trainer)
    monkeypatch.setattr("stateset_agents.trainers.grpo.NODES_PER_PASS", 10)
    split = passes(group, advantages)
    assert len(split) == 4
    for part in split:
        torch.autograd.backward(trainer.compute_loss(trainer.model, trainer._inputs(part, tokens)))
    for name, gradient in gradients(trainer).items():
        assert (whole[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-7, name


def test_log_probabilities_are_of_the_sampling_distribution(tmp_path: Path) -> None:
    """At temperature 0.6 the first ratio is 1 only if the trainer divides the logits as well."""
    trainer = new_trainer(tmp_path, temperature=0.6)
    group = episodes(4)
    (part,) = passes(group, [1.0] * 4)
    with torch.no_grad():
        warm, _ = trainer.logprobs(trainer.model, part)
        trainer.temperature = 1.0
        naive, _ = trainer.logprobs(trainer.model, part)
        output = trainer.model(
            input_ids=part.ids, position_ids=part.depth, tree=part.tree, use_cache=False
        )
        first = torch.log_softmax(output.logits[0, part.predict] / 0.6, -1)
    wanted = first[part.sources_BT, part.sampled_BT]
    torch.testing.assert_close(warm, wanted)
    assert not torch.allclose(naive, wanted, atol=1e-2)


def test_episodes_without_advantage_are_skipped() -> None:
    group = episodes(5)
    assert passes(group, [0.0] * 4) == []
    (part,) = passes(group, [1.0, 0.0, 0.0, 0.0])
    assert len(part.mask_BT) == 3


def test_the_kl_term_pulls_episodes_without_advantage_back_too(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, beta=0.1)
    group = episodes(5)
    (part,) = passes(group, [0.0] * 4, every=True)
    assert len(part.mask_BT) == 12
    loss = trainer.compute_loss(trainer.model, trainer._inputs(part, 1))
    assert loss.item() > 0
    torch.autograd.backward(loss)
    assert any(gradient.norm() > 0 for gradient in gradients(trainer).values())


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


def test_a_step_moves_only_the_adapter(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    group = episodes(6)
    told = trainer.learn(passes(group, [1.0, -1.0, 1.0, -1.0]), sum(e.tokens for e in group))
    assert told["grad_norm"] > 0
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved
    assert all("lora" in name for name in moved)
