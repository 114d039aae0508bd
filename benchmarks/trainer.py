"""What sharing prefixes saves: the gradient of one group of agent episodes, by our trie and by TRL's stock loss.

The same tokens, advantages and recorded log-probabilities in every line; one thread, CPU seconds (or seconds on a GPU with
`--device cuda`). The ratios that count are against rows merged per trajectory, which is the best that padded rows can do; rows per
call are what trainers that know single turns alone make of an agent's episode.
"""

import argparse
import gc
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import GRPOConfig, GRPOTrainer

from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.packing import tree_attention
from stateset_agents.trainers.packing.batches import Sample, batches
from stateset_agents.trainers.tree_trainer import grpo_trainer
from stateset_agents.trajectory import Row, Trajectory

EPISODES, CALLS, SAMPLED, TOOL = 8, 8, 50, 50
VOCABULARY = 8192


def episodes(prefix: int, seed: int = 0) -> list[Sample]:
    """8 episodes of one scenario: a shared prefix, then 8 calls of 50 sampled tokens, each followed by 50 of a tool."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(count)]

    shared, made = ids(prefix), []
    for number in range(EPISODES):
        seen, rows = list(shared), []
        for call in range(CALLS):
            sampled = ids(SAMPLED)
            logprobs = tuple(rng.uniform(-10.0, -8.0) for _ in sampled)
            rows.append(
                Row(prompt=tuple(seen), sampled=tuple(sampled), logprobs=logprobs, node="policy",
                    version="policy", number=call)
            )  # fmt: skip
            seen += sampled + ids(TOOL)
        worth = 1.0 if number % 2 else -1.0
        made.append(
            Sample(
                trajectory=Trajectory(trace_id=str(number), rows=tuple(rows)),
                advantages=(worth,) * CALLS,
            )
        )
    return made


def in_float64(model: Any) -> Any:
    """A model that computes in float64 throughout: transformers' RMS norms compute in float32, whatever is asked for."""
    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            eps = module.variance_epsilon

            def norm(x: torch.Tensor, m: Any = module, eps: float = eps) -> torch.Tensor:
                scaled: torch.Tensor = (
                    m.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
                )
                return scaled

            module.forward = norm
    return model


SHAPES: dict[str, dict[str, int]] = {
    "14M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
            "num_key_value_heads": 6, "vocab_size": VOCABULARY},
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936},
}  # fmt: skip
"""A Qwen2 of 14 million parameters, and Qwen3's shapes for a GPU."""


def model(attention: str, shape: str = "14M") -> PreTrainedModel:
    """A model of a shape with random weights."""
    torch.manual_seed(0)
    config, kind = (
        (Qwen2Config, Qwen2ForCausalLM) if shape == "14M" else (Qwen3Config, Qwen3ForCausalLM)
    )
    made: PreTrainedModel = kind(
        config(
            **SHAPES[shape], max_position_embeddings=8192, tie_word_embeddings=True,
            attn_implementation=attention,
        )
    )  # fmt: skip
    return made


@dataclass(frozen=True, slots=True)
class Segment:
    """A padded row: what is read, and which of it was sampled."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float

    @property
    def prompt(self) -> int:
        return self.mask.index(1)


def merged(samples: Sequence[Sample]) -> list[Segment]:
    """One row a trajectory: its last call's tokens, all that was sampled in it marked."""
    batches_made = []
    for sample in samples:
        rows = sample.trajectory.rows
        last = rows[-1]
        ids = (*last.prompt, *last.sampled)
        mask, logprobs = [0] * len(ids), [0.0] * len(ids)
        for row in rows:
            at = len(row.prompt)
            mask[at : at + len(row.sampled)] = [1] * len(row.sampled)
            logprobs[at : at + len(row.sampled)] = row.logprobs
        batches_made.append(Segment(ids, tuple(mask), tuple(logprobs), sample.advantages[0]))
    return batches_made


def per_call(samples: Sequence[Sample]) -> list[Segment]:
    """One row a model call."""
    return [
        Segment(
            (*row.prompt, *row.sampled),
            (0,) * len(row.prompt) + (1,) * len(row.sampled),
            (0.0,) * len(row.prompt) + row.logprobs,
            worth,
        )
        for sample in samples
        for row, worth in zip(sample.trajectory.rows, sample.advantages, strict=True)
    ]


def padded(segments: Sequence[Segment], shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """TRL's tensors: prompts padded on the left, completions on the right; to `shape` where one is given."""
    wide = shape or (
        max(s.prompt for s in segments),
        max(len(s.ids) - s.prompt for s in segments),
    )
    before, after = wide
    rows = len(segments)
    made: dict[str, Any] = {
        "prompt_ids": torch.zeros((rows, before), dtype=torch.long),
        "prompt_mask": torch.zeros((rows, before), dtype=torch.long),
        "completion_ids": torch.zeros((rows, after), dtype=torch.long),
        "completion_mask": torch.zeros((rows, after), dtype=torch.long),
        "tool_mask": torch.zeros((rows, after), dtype=torch.long),
        "old_per_token_logps": torch.zeros((rows, after)),
        "advantages": torch.tensor([s.advantage for s in segments]),
    }
    for number, s in enumerate(segments):
        first, count = s.prompt, len(s.ids) - s.prompt
        made["prompt_ids"][number, before - first :] = torch.tensor(s.ids[:first])
        made["prompt_mask"][number, before - first :] = 1
        made["completion_ids"][number, :count] = torch.tensor(s.ids[first:])
        made["completion_mask"][number, :count] = 1
        made["tool_mask"][number, :count] = torch.tensor(s.mask[first:])
        made["old_per_token_logps"][number, :count] = torch.tensor(s.logprobs[first:])
    return made


class Stock(GRPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """TRL's trainer; in float64 with the model's own head, since its fused one computes in float32."""

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:  # fmt: skip
        if model.dtype != torch.float64:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        parts = []
        for row, mask in zip(input_ids, attention_mask, strict=True):
            states = model.model(input_ids=row[None], attention_mask=mask[None]).last_hidden_state
            logits = model.lm_head(states[0, -logits_to_keep - 1 : -1])
            every = logits.log_softmax(-1)
            parts.append(every.gather(1, row[-logits_to_keep:, None])[:, 0])
        logprobs = torch.stack(parts)
        return logprobs, torch.zeros_like(logprobs), None


class Rival:
    """TRL's stock trainer and loss over padded rows, `size` of them at once."""

    def __init__(self, policy: PreTrainedModel, folder: Path, device: str) -> None:
        args = GRPOConfig(
            output_dir=str(folder), per_device_train_batch_size=8, num_generations=8, loss_type="dapo",
            beta=0.0, epsilon=0.2, epsilon_high=0.28, bf16=device != "cpu", use_cpu=device == "cpu", report_to=[],
            gradient_checkpointing=False, disable_tqdm=True, steps_per_generation=1,
        )  # fmt: skip
        self.trainer = Stock(
            model=policy, reward_funcs=[lambda completions, **_: [0.0] * len(completions)], args=args,
            train_dataset=Dataset.from_list([{"prompt": "unused"}]),
            processing_class=AutoTokenizer.from_pretrained(SEED_POLICY),
        )  # fmt: skip
        self.trainer.current_gradient_accumulation_steps = 1
        self.device = device

    def gradient(
        self, segments: Sequence[Segment], size: int, *, trim: bool = True
    ) -> tuple[int, int]:
        """Backward over all rows; returns the positions computed, padding included, and the micro-batches."""
        ordered = sorted(segments, key=lambda s: len(s.ids)) if trim else list(segments)
        shape = None
        if not trim:
            shape = (
                max(s.prompt for s in segments),
                max(len(s.ids) - s.prompt for s in segments),
            )
        tokens = torch.tensor(float(sum(sum(s.mask) for s in segments)))
        positions = parts = 0
        for start in range(0, len(ordered), size):
            inputs = padded(ordered[start : start + size], shape)
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            inputs["num_items_in_batch"] = tokens.to(self.device)
            positions += inputs["prompt_ids"].numel() + inputs["completion_ids"].numel()
            parts += 1
            loss = self.trainer.compute_loss(self.trainer.model, inputs)
            torch.autograd.backward(loss)
        return positions, parts


def ours(policy: PreTrainedModel, folder: Path) -> Any:
    precision = "fp32" if policy.device.type == "cpu" else "bf16"
    config = TrainConfig(
        algorithm="dapo", full=True, tokens_per_batch=16384, group_size=8, learning_rate=1e-6, precision=precision
    )  # fmt: skip
    return grpo_trainer(policy, AutoTokenizer.from_pretrained(SEED_POLICY), folder, config)


def on_the_gpu(shape: str, prefix: int, peak_flops: float) -> list[tuple[str, ...]]:
    """Tokens a second, the share of the card's arithmetic that the model's own work is (6 x parameters x positions), and memory, of the trie
    and of merged rows, both in bfloat16 over float32 weights."""
    samples, rows = episodes(prefix), list[tuple[str, ...]]()
    for layout in ("trie", "rows merged per trajectory"):
        policy = model(tree_attention.NAME if layout == "trie" else "sdpa", shape).to("cuda")
        parameters = sum(p.numel() for p in policy.parameters())
        work: Callable[[], Any]
        with tempfile.TemporaryDirectory() as folder:
            if layout == "trie":
                work = partial(tree_gradient, ours(policy, Path(folder)), samples, "cuda")
            else:
                rival = Rival(policy, Path(folder), "cuda")
                work = partial(rival.gradient, merged(samples), 1)
            result = work()  # compiles
            positions = result if isinstance(result, int) else result[0]
            torch.cuda.reset_peak_memory_stats()
            taken = seconds(work, "cuda", 3)
        used = 6 * parameters * positions / taken / peak_flops
        memory = torch.cuda.max_memory_allocated() / 2**30
        wanted = sum(sample.tokens for sample in samples)
        rows.append(
            (layout, f"{positions:,}", f"{taken:.2f}", f"{wanted / taken:,.0f} sampled tokens/s",
             f"MFU {used:.0%}, {memory:.1f} GiB")
        )  # fmt: skip
        del policy, work
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def tree_gradient(trainer: Any, samples: Sequence[Sample], device: str) -> int:
    """The same gradient through the trie, folding included; returns the positions computed."""
    positions = 0
    for batch in batches(samples, trainer.config.tokens_per_batch):
        moved = batch.to(device)
        positions += moved.ids.numel()
        torch.autograd.backward(trainer.batch_loss(moved, samples))
    return positions


def gradients(policy: PreTrainedModel) -> torch.Tensor:
    gradient = torch.cat(
        [p.grad.flatten().double() for p in policy.parameters() if p.grad is not None]
    )
    policy.zero_grad()
    return gradient


def clock(device: str) -> float:
    """CPU seconds of this process; on a GPU the time that went by, once it is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(task: Callable[[], object], device: str, repeats: int) -> float:
    """The least of several runs."""
    times = []
    for _ in range(repeats):
        gc.collect()
        began = clock(device)
        task()
        times.append(clock(device) - began)
    return min(times)


def relative(first: torch.Tensor, other: torch.Tensor) -> float:
    return float((first - other).norm() / other.norm())


def peak(layout: str, prefix: int) -> float:
    """Peak memory in MB of a process of its own that makes one gradient; what it began with taken off."""
    command = f"{sys.executable} -m benchmarks.trainer --peak {layout} --prefix {prefix}"
    return float(os.popen(command).read().strip().splitlines()[-1])


def peak_here(layout: str, prefix: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        samples = episodes(prefix)
        if layout == "trie":
            policy = model(tree_attention.NAME)
            trainer = ours(policy, Path(folder))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            tree_gradient(trainer, samples, "cpu")
        else:
            policy = model("sdpa")
            rival = Rival(policy, Path(folder), "cpu")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            rival.gradient(merged(samples), 8)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def table(prefix: int, device: str, repeats: int, *, slow: bool) -> list[tuple[str, ...]]:
    """Rows of the table for one length of the shared prefix."""
    samples = episodes(prefix)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shared = model(tree_attention.NAME).to(device)
        trainer = ours(shared, place)
        plain = model("sdpa").to(device)
        rival = Rival(plain, place, device)
        nodes = tree_gradient(trainer, samples, device)
        mine = gradients(shared)
        rival.gradient(merged(samples), 8)
        theirs = gradients(plain)
        fold = seconds(
            lambda: batches(samples, trainer.config.tokens_per_batch), "cpu", max(3, repeats)
        )
        rows: list[tuple[str, ...]] = []
        once = seconds(partial(tree_gradient, trainer, samples, device), device, repeats)
        rows.append(("trie", f"{nodes:,}", f"{once:.2f}", "", f"folding {fold / once:.2%} of it"))
        best = min(
            (seconds(partial(rival.gradient, merged(samples), size), device, repeats), size)
            for size in (1, 8)
        )
        positions, _ = rival.gradient(merged(samples), 8)
        rows.append(
            ("rows merged per trajectory", f"{positions:,}", f"{best[0]:.2f}", f"{best[0] / once:.2f}x",
             f"{best[1]} at once, the faster of 1 and 8")
        )  # fmt: skip
        if slow:
            calls = per_call(samples)
            for name, trim in (
                ("trimmed rows per call", True),
                ("TRL's padded rows per call", False),
            ):
                began = clock(device)
                positions, _ = rival.gradient(calls, 8, trim=trim)
                taken = clock(device) - began
                rows.append(
                    (name, f"{positions:,}", f"{taken:.1f}", f"{taken / once:.1f}x", "worst case")
                )
        shared64, plain64 = in_float64(model(tree_attention.NAME)), in_float64(model("sdpa"))
        exact = ours(shared64.to(device), place)
        truth = Rival(plain64.to(device), place, device)
        tree_gradient(exact, samples, device)
        truth.gradient(merged(samples), 8)
        whole, reference = gradients(shared64), gradients(plain64)
        rows.append(
            (
                "gradient, fp64, trie to rows",
                "",
                "",
                f"{relative(whole, reference):.1e}",
                "relative",
            )
        )
        rows.append(
            ("gradient, fp32, to fp64", "", "", f"{relative(mine, reference):.1e}",
             f"of the rows {relative(theirs, reference):.1e}")
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", choices=("trie", "merged"))
    parser.add_argument("--shape", choices=tuple(SHAPES), default="14M")
    parser.add_argument(
        "--peak-flops",
        type=float,
        default=989e12,
        help="of the GPU in bfloat16; an H100's by default",
    )
    parser.add_argument("--fast", action="store_true", help="without the rows per call")
    options = parser.parse_args()
    if options.peak:
        peak_here(options.peak, options.prefix or 700)
        return
    torch.set_num_threads(1)
    console = Console(highlight=False, width=120)
    for prefix in [options.prefix] if options.prefix else [700, 3000]:
        slow = prefix <= 700 and not options.fast
        if options.device == "cuda":
            rows = on_the_gpu(options.shape, prefix, options.peak_flops)
        else:
            rows = table(prefix, options.device, options.repeats, slow=slow)
            trie_peak, other = peak("trie", prefix), peak("merged", prefix)
            rows.append(
                (
                    "peak memory, trie",
                    "",
                    f"{trie_peak:.0f} MB",
                    f"{other / trie_peak:.2f}x",
                    f"merged {other:.0f} MB",
                )
            )
        shown = Table(
            title=f"8 episodes x 8 calls, {prefix} shared tokens, {options.shape}, "
            f"{'one thread' if options.device == 'cpu' else torch.cuda.get_device_name()}, {platform.machine()}, torch {torch.__version__}"
        )
        for column in ("layout", "positions", "seconds", "against the trie", ""):
            shown.add_column(column)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)


if __name__ == "__main__":
    main()
