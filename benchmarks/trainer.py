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
from functools import partial
from pathlib import Path
from typing import Any

import torch
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

from benchmarks.padded_rows import Rival, merged, per_call
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


def ours(policy: PreTrainedModel, folder: Path) -> Any:
    precision = "fp32" if policy.device.type == "cpu" else "bf16"
    config = TrainConfig(
        algorithm="dapo", full=True, tokens_per_batch=16384, group_size=8, learning_rate=1e-6, precision=precision
    )  # fmt: skip
    return grpo_trainer(policy, AutoTokenizer.from_pretrained(SEED_POLICY), folder, config)


def on_the_gpu(shape: str, prefix: int, peak_flops: float) -> list[tuple[str, ...]]:
    """Tokens a second, the share of the card's arithmetic that the model's own work is (6 x parameters x positions), and
    memory, of the trie and of merged rows, both in bfloat16 over float32 weights."""
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
