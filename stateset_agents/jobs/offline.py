"""Jobs around a store: fill one with episodes, learn from one without a policy server, train a reward on one."""

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stateset_agents.errors import BadInput
from stateset_agents.evaluation import measure
from stateset_agents.graphs.mixed_quality import pairs as mixed_pairs
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import model_path, served_policy
from stateset_agents.jobs.registry import (
    find_hold,
    find_limits,
    find_node_rewards,
    find_reward,
    find_rollout,
    find_scenarios,
)
from stateset_agents.jobs.train import Report, link_weights
from stateset_agents.policy.chat_model import connect
from stateset_agents.reward import Score
from stateset_agents.settings import load_settings
from stateset_agents.tools.scenarios.generator import ALL_INTENTS
from stateset_agents.tools.scenarios.generator import scenarios as generate_scenarios
from stateset_agents.trace import Trace
from stateset_agents.traces.dataset import LEARNED_FROM, Usable, measures
from stateset_agents.traces.store import TraceStore

IMITATION = {
    "from_traces", "method", "model", "reward", "seed", "threads", "epochs", "learning_rate", "beta", "rank", "lora_alpha",
    "lora_dropout", "full", "precision", "gradient_checkpointing", "max_grad_norm", "log",
}  # fmt: skip
"""What SFT and DPO read."""


async def collect_job(
    config: JobConfig, run: Path, adapter: Path | None, report: Report
) -> dict[str, Any]:
    """Play groups of training scenarios with the policy as it is, and keep them: what `from_traces` trains on. Returns what it came
    to."""
    from stateset_agents.trainers.rollouts import Plan, Player

    reward = find_reward(config.reward)
    play_with = find_rollout(config.graph, config.customer, config.world)
    hold_with = find_hold(config.graph, config.customer, config.world)
    training, _ = find_scenarios(config)
    (run / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    scores: list[Score | None] = []
    traces: list[Trace] = []
    with TraceStore(run / "traces.db") as store:
        async with served_policy(
            config, adapter, run, lambda told: report("engine", {"told": told})
        ) as (url, name):
            policy = connect(url, name, patience=load_settings().away_seconds)
            player = Player(
                lambda scenario, sampling: play_with(scenario, policy, sampling),
                lambda scenario, sampling: hold_with(scenario, policy, sampling),
                config,
            )
            report("start", {"training": len(training), "held_out": 0, "run": run})
            report("collect", {"episodes": config.steps * config.groups * config.group_size})
            for step in range(1, config.steps + 1):
                groups = min(config.groups, len(training))
                places = [((step - 1) * groups + n) % len(training) for n in range(groups)]
                plan = Plan(
                    step=step,
                    scenarios=tuple(places),
                    group_size=config.group_size,
                    temperature=config.temperature,
                )
                for group in await player.play(plan, training, {}, name):
                    graded = await reward(group)
                    pending = [
                        store.append(trace, phase="train", step=0, score=score)
                        for trace, score in zip(group, graded, strict=True)
                    ]
                    for written in pending:
                        await written
                        report("tick", {})
                    scores += graded
                    traces += group
    result = measure(traces, scores, version=name, temperature=config.temperature)
    summary = {
        "episodes": len(traces),
        "tokens_sampled": sum(trace.tokens_sampled for trace in traces),
        "success": result.success,
        "mean_reward": result.mean_reward,
        "failed": result.failed,
    }
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report("end", {})
    return summary


async def recorded_job(
    config: JobConfig, run: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train on the traces of a store, without a policy server; goes on where a killed run stopped. Returns the summary.

    Exact traces are trained on by their rewards; where there are none, text is imitated (SFT), or preferred to worse text (DPO),
    and the summary says why. Raises BadInput where there is nothing to learn from, with what was found.
    """
    import torch
    from transformers import AutoTokenizer

    from stateset_agents.trainers.imitation import imitate
    from stateset_agents.trainers.offline import train_recorded

    torch.set_num_threads(config.threads)
    reward = find_reward(config.reward)
    assert config.from_traces is not None
    with TraceStore(config.from_traces, create=False) as store:
        found = Usable(_as_it_was(list(store.traces(where=LEARNED_FROM)), run))
        method, why = found.method(config.method)
        if method != "rl":
            wrong = sorted(config.model_fields_set - IMITATION)
            if wrong:
                raise BadInput(
                    f"--{wrong[0].replace('_', '-')}: learning by {method} does not read it ({why})."
                )
        (run / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
        tokenizer = AutoTokenizer.from_pretrained(model_path(config.model))
        about = {"from": config.from_traces, "traces": len(found.every), "exact": len(found.exact),
                 "method": method, "why": why}  # fmt: skip
        if method == "rl":
            groups = found.groups()
            learner = await train_recorded(
                base=model_path(config.model), tokenizer=tokenizer, groups=groups, reward=reward, store=store, run=run,
                config=config.model_copy(update={"temperature": found.temperature()}), report=report,
                node_rewards=find_node_rewards(config), limits=find_limits(config), logs=config.log,
            )  # fmt: skip
            weights, log = learner.checkpoints.weights(learner.step), learner.log
            about |= {
                "groups": len(groups),
                "ended": log[-1].get("ended") if log else None,
                "ess": [line["ess"] for line in log],
                "mean_reward": [line["reward"] for line in log],
            }
        else:
            weights, log, done = await imitate(
                method, base=model_path(config.model), tokenizer=tokenizer, traces=found.ended, reward=reward, run=run,
                config=config, report=report,
            )  # fmt: skip
            if done != method:
                why += "; none was answered better and worse, so the best are imitated"
            about |= {"method": done, "why": why}
    link_weights(run, weights)
    summary = {
        **about,
        "steps": len(log),
        "tokens_trained": sum(line["tokens_trained"] for line in log),
    }
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _as_it_was(traces: list[Trace], run: Path) -> list[Trace]:
    """The traces that a run began with: a store goes on growing, and what is resumed must not."""
    kept = run / "traces.json"
    if not kept.is_file():
        beside = kept.with_suffix(".writing")
        beside.write_text(json.dumps([trace.id for trace in traces]))
        beside.replace(kept)
    places = {name: place for place, name in enumerate(json.loads(kept.read_text()))}
    return sorted((t for t in traces if t.id in places), key=lambda trace: places[trace.id])


async def reward_model_job(
    out: Path, *, store: str | None, feedback: str | None, pairs: int, model: str, epochs: float, seed: int,
    report: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Train a reward model on a store's preferences, or on generated ones. Returns what came of it.

    Raises BadInput where there are too few.
    """
    import torch

    from stateset_agents.trainers.reward_model import preferences, train_reward_model

    base = model_path(model)
    torch.set_num_threads(load_settings().threads)
    found: list[tuple[Trace, Trace]] = []
    if store is not None:
        place = str(Path(store) / "traces.db") if Path(store).is_dir() else store
        with TraceStore(place, create=False) as opened:
            every_trace = opened.traces(where=LEARNED_FROM)
            found = preferences([t for t in every_trace if not measures(t)], feedback=feedback)
    else:
        report(f"playing episodes for {pairs} preferences")
        every = generate_scenarios(seed=seed + 1, split="train", intents=ALL_INTENTS)
        async for better, worse in mixed_pairs(
            list(itertools.islice(every, pairs + pairs // 10)), seed=seed
        ):
            found.append((better.trace, worse.trace))
            if len(found) % 500 == 0:
                report(f"{len(found)} preferences")
    out.mkdir(parents=True, exist_ok=True)
    result = await asyncio.to_thread(
        train_reward_model,
        base,
        found[:pairs],
        out,
        seed=seed,
        epochs=epochs,
        report=report,
    )
    return asdict(result)
