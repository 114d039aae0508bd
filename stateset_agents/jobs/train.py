"""Jobs: the wiring of a training run and of an evaluation, for the command line and the server alike."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from stateset_agents.errors import BadInput, PolicyUnreachable
from stateset_agents.evaluation import Measurement, measure, paired_gain
from stateset_agents.graphs.rollout import converse
from stateset_agents.jobs.config import GRAPHS, JobConfig
from stateset_agents.jobs.policy_server import (
    check_tokenizer,
    model_path,
    policy_server,
    renderer,
    served_policy,
)
from stateset_agents.jobs.registry import (
    RolloutWith,
    find_hold,
    find_limits,
    find_node_rewards,
    find_reward,
    find_rollout,
    find_scenarios,
)
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.litellm import PREFIX, ProviderPolicy
from stateset_agents.policy.metrics import Meters, read_meters
from stateset_agents.policy.publishing import publish
from stateset_agents.reward import Reward, about_of
from stateset_agents.scenario import Scenario
from stateset_agents.settings import load_settings
from stateset_agents.tools.scenarios.generator import intents_of
from stateset_agents.tools.scenarios.generator import scenarios as generate_scenarios
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.dataset import LEARNED_FROM, Usable
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.concurrency import MOST, Gate
from stateset_agents.trainers.config import ONE

Report = Callable[[str, dict[str, Any]], None]
"""Called with an event's name (start, measure, tick, measured, train, step, end) and its values."""


async def evaluate(
    scenarios: Sequence[Scenario],
    rollout: RolloutWith,
    reward: Reward,
    *,
    policy: BaseChatModel,
    version: str,
    temperature: float,
    config: JobConfig,
    store: TraceStore,
    phase: str,
    tick: Callable[[], None] = lambda: None,
    versions: dict[str, str] | None = None,
) -> Measurement:
    """Play every scenario once and sum up."""
    gate = Gate(config.concurrency)

    async def one(number: int, scenario: Scenario) -> Trace:
        sampling = Sampling(
            version=version,
            versions=versions or {},
            temperature=temperature,
            seed=config.seed * 100_003 + number,
            max_tokens=config.max_tokens,
        )
        async with gate.place() as played:
            trace = await rollout(scenario, policy, sampling)
            played(trace.tokens_sampled)
        tick()
        return trace

    traces = list(await asyncio.gather(*(one(i, s) for i, s in enumerate(scenarios))))
    # Of other scenarios each: what compares the traces of a group has nothing to compare here.
    scores = [None] * len(traces) if about_of(reward).compares else await reward(traces)
    pending = [
        store.append(trace, phase=phase, score=score)
        for trace, score in zip(traces, scores, strict=True)
    ]
    for written in pending:
        await written
    return measure(traces, scores, version=version, temperature=temperature)


def new_run(root: Path) -> Path:
    """A fresh folder for a run."""
    run = root / time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(2):
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            run = run.with_name(f"{run.name.split('_')[0]}_{number}")
        except OSError as error:
            raise BadInput(f"Expected to write to {str(root)!r}, found {error.strerror}.") from None
    raise AssertionError


def _told(report: Report) -> Callable[[str], None]:
    return lambda told: report("engine", {"told": told})


async def _warm(
    config: JobConfig, run: Path, tokenizer: Any, reward: Reward, url: str, base_name: str, report: Report
) -> tuple[Path | None, str]:  # fmt: skip
    """Imitate what `warm_start` names, once; the weights, and the name they are served under."""
    if config.warm_start is None:
        return None, base_name
    from stateset_agents.trainers.imitation import imitate
    from stateset_agents.trainers.learner import version

    place = run / "warm" / "adapter-trained"
    if not (run / "warm" / "done").is_file():
        traces = await warm_traces(config)
        report("warm", {"traces": len(traces)})
        (run / "warm").mkdir(exist_ok=True)
        await imitate(
            "sft", base=model_path(config.model), tokenizer=tokenizer, traces=traces, reward=reward,
            run=run / "warm", config=config, report=lambda line: None,
        )  # fmt: skip
        (run / "warm" / "done").touch()
    await publish(connect(url, base_name).servers, version(run, 0), place)
    return place, version(run, 0)


def check_warm_start(config: JobConfig) -> None:
    """Raises BadInput where what is to be imitated first is not there."""
    if config.warm_start not in (None, "oracle"):
        TraceStore(str(config.warm_start), create=False).close()


async def warm_traces(config: JobConfig) -> list[Trace]:
    """What is imitated before the first episode: the oracle's, on training scenarios of seeds of their own, or a store's."""
    if config.warm_start != "oracle":
        with TraceStore(str(config.warm_start), create=False) as store:
            return Usable(list(store.traces(where=LEARNED_FROM))).ended[: config.warm_traces]
    if config.graph not in GRAPHS:
        raise BadInput(
            "--warm-start oracle: only the shop's own graphs have plans, name a store instead."
        )
    endless = generate_scenarios(
        seed=config.seed + 1_000, split="train", intents=intents_of(config.graph)
    )
    return [
        await converse(s, Oracle(plan=s.plan), Sampling(), graph=config.graph, texts=True)
        for s in itertools.islice(endless, config.warm_traces)
    ]


def link_weights(run: Path, weights: Path) -> None:
    """`run/adapter`, whatever the last step was."""
    link = run / "adapter"
    if not link.is_symlink():
        link.symlink_to(weights.relative_to(run))


async def train_job(config: JobConfig, run: Path, report: Report) -> dict[str, Any]:
    """Measure, train, measure again; go on where a killed run stopped. Returns the summary."""
    import torch
    from transformers import AutoTokenizer

    from stateset_agents.trainers import loop
    from stateset_agents.trainers.learner import version

    clock = _clock(run)
    _make_room_for_threads(config)
    rollout = find_rollout(config.graph, config.customer, config.world)
    reward = find_reward(config.reward)
    training, held_out = find_scenarios(config)
    torch.set_num_threads(config.threads)
    (run / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(model_path(config.model))
    with TraceStore(run / "traces.db") as store:
        async with policy_server(config, run, _told(report), training=True) as (url, base_name):
            report("start", {"training": len(training), "held_out": len(held_out), "run": run})
            policy = connect(url, base_name, patience=load_settings().away_seconds)
            await check_tokenizer(policy.servers, base_name, tokenizer)
            policy = policy.model_copy(update={"render": renderer(tokenizer)})

            async def measured(
                phase: str, version: str, temperature: float, versions: dict[str, str] | None = None
            ) -> Measurement:
                kept = run / f"{phase}.json"
                if kept.is_file():
                    return Measurement.model_validate_json(kept.read_text())
                report("measure", {"phase": phase, "episodes": len(held_out)})
                store.discard_from(phase, 0)
                result = await evaluate(
                    held_out, rollout, reward, policy=policy, version=version, temperature=temperature,
                    config=config, store=store, phase=phase, tick=lambda: report("tick", {}), versions=versions,
                )  # fmt: skip
                beside = kept.with_suffix(".writing")
                beside.write_text(result.model_dump_json(indent=1))
                beside.replace(kept)
                clock()
                report("measured", {"phase": phase, "result": result})
                return result

            before = await measured("before", base_name, config.temperature)
            greedy_before = await measured("greedy_before", base_name, 0.0)

            async def play(scenario: Scenario, sampling: Sampling) -> Trace:
                return await rollout(scenario, policy, sampling)

            async def held(scenario: Scenario, sampling: Sampling) -> Any:
                return await find_hold(config.graph, config.customer, config.world)(
                    scenario, policy, sampling
                )

            def by_node(served: dict[str, str]) -> tuple[str, dict[str, str]]:
                """The version to ask for, and those of nodes that have one of their own."""
                if set(served) == {ONE}:
                    return served[ONE], {}
                return warm_name, {
                    node: served[name] for name, nodes in config.trained.items() for node in nodes
                }

            counted = Meters()
            with contextlib.suppress(PolicyUnreachable):
                counted = await read_meters(policy.servers)

            async def between(step: int, served: dict[str, str]) -> dict[str, Any]:
                """What the prefix cache gave in this step, and what is measured after it."""
                nonlocal counted
                now = counted
                with contextlib.suppress(PolicyUnreachable):  # one that is away counts nothing
                    now = await read_meters(policy.servers)
                hits = now.since(counted).hit_rate
                counted = now
                return {"prefix_hits": hits, **await held_out_now(step, served)}

            async def held_out_now(step: int, served: dict[str, str]) -> dict[str, Any]:
                if not config.eval_every or step % config.eval_every:
                    return {}
                name, versions = by_node(served)
                result = await evaluate(
                    held_out, rollout, reward, policy=policy, version=name, temperature=config.temperature, config=config,
                    store=store, phase=f"step-{step}", versions=versions,
                )  # fmt: skip
                return {
                    "held_out": {
                        "success": result.success,
                        "violations": result.violations / len(held_out),
                    }
                }

            async def serve(version: str, path: Path, before: int) -> None:
                clock()
                await publish(
                    policy.servers, version, path, before, patience=load_settings().away_seconds
                )

            warm, warm_name = await _warm(config, run, tokenizer, reward, url, base_name, report)
            report("train", {"steps": config.steps, "tokens_max": config.max_tokens})
            learner = await loop.train(
                base=str(warm) if warm and config.full else model_path(config.model),
                adapter=None if config.full else warm,
                served=warm_name,
                tokenizer=tokenizer,
                scenarios=training,
                rollout=play,
                hold=held if config.forks else None,
                reward=reward,
                node_rewards=find_node_rewards(config),
                limits=find_limits(config),
                publish=serve,
                store=store,
                run=run,
                config=config.model_copy(update={"groups": min(config.groups, len(training))}),
                report=lambda line: report("step", line),
                logs=config.log,
                measure=between,
            )
            log = learner.log
            final, versions = by_node(
                {name: version(run, learner.step, name) for name in config.trained}
            )
            after = await measured("after", final, config.temperature, versions)
            greedy_after = await measured("greedy_after", final, 0.0, versions)
    link_weights(run, learner.checkpoints.weights(learner.step))
    pairs = _pairs(before, after)
    gain, gain_ci = paired_gain(*pairs) if pairs[0] else (None, None)
    summary = {
        "seed": config.seed,
        "steps": learner.step,
        "algorithm": config.algorithm,
        "group_size": config.group_size,
        "episodes_trained": sum(line["episodes"] for line in log),
        "held_out": len(held_out),
        "measured_by": before.measured_by,
        "success_before": before.success,
        "success_after": after.success,
        "ci95_before": before.ci95,
        "ci95_after": after.ci95,
        "gain": gain,
        "gain_ci95": gain_ci,
        "greedy_before": greedy_before.success,
        "greedy_after": greedy_after.success,
        "success_by_intent": {
            intent: {"before": before.success_by_intent[intent], "after": after.success_by_intent[intent]}
            for intent in before.success_by_intent
            if intent in after.success_by_intent
        },
        "mean_reward_before": before.mean_reward,
        "mean_reward_after": after.mean_reward,
        "violations_before": before.violations,
        "violations_after": after.violations,
        "turns_before": before.turns,
        "turns_after": after.turns,
        "seconds_total": clock(),
        "seconds_rollout": sum(line["seconds_rollout"] for line in log),
        "seconds_train": sum(line["seconds_train"] for line in log),
        "tokens_sampled": sum(line["tokens_sampled"] for line in log),
        "tokens_trained": sum(line["tokens_trained"] for line in log),
        "positions_forwarded": sum(line["positions_forwarded"] for line in log),
        "positions_in_rows": sum(line["positions_in_rows"] for line in log),
        "policy_versions": learner.step + 1,
        "changes": [f"step {line['step']}: {told}" for line in log for told in line["changes"]],
        "limits": config.limits,
        "torch_threads": config.threads,
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report("end", summary)
    return summary


def _make_room_for_threads(config: JobConfig) -> None:
    """Synchronous nodes run in threads: one for each episode, where Python has a few more than there are cores. Beside them what is
    written and trained."""
    threads = ThreadPoolExecutor((config.concurrency or MOST) + 16)
    asyncio.get_running_loop().set_default_executor(threads)


def _clock(run: Path) -> Callable[[], float]:
    """Seconds that a run has worked, those before a kill included; every reading is kept in the run."""
    kept = run / "seconds.json"
    earlier = float(json.loads(kept.read_text())) if kept.is_file() else 0.0
    began = time.perf_counter()

    def seconds() -> float:
        now = earlier + time.perf_counter() - began
        beside = kept.with_suffix(".writing")
        beside.write_text(json.dumps(now))
        beside.replace(kept)
        return now

    return seconds


def _pairs(before: Measurement, after: Measurement) -> tuple[list[float], list[float]]:
    both = [
        (a, b)
        for a, b in zip(before.outcomes, after.outcomes, strict=True)
        if a is not None and b is not None
    ]
    return [a for a, _ in both], [b for _, b in both]


@contextlib.asynccontextmanager
async def _evaluated(
    config: JobConfig, adapter: Path | None, run: Path, report: Report
) -> AsyncIterator[tuple[BaseChatModel, str]]:
    """What is measured: a served policy, or a provider's model."""
    if config.model.startswith(PREFIX):
        name = config.model.removeprefix(PREFIX)
        yield ProviderPolicy(name_there=name, base_url=config.base_url), name
        return
    async with served_policy(config, adapter, run, _told(report)) as (url, name):
        yield connect(url, name, patience=load_settings().away_seconds), name


async def evaluate_job(
    config: JobConfig, run: Path, adapter: Path | None, temperature: float, report: Report
) -> Measurement:
    """Measure a policy on held-out scenarios; traces and the result are kept in `run`."""
    _make_room_for_threads(config)
    rollout = find_rollout(config.graph, config.customer, config.world)
    reward = find_reward(config.reward)
    _, held_out = find_scenarios(config, only_measured=True)
    (run / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    with TraceStore(run / "traces.db") as store:
        async with _evaluated(config, adapter, run, report) as (policy, name):
            report("start", {"training": 0, "held_out": len(held_out), "run": run})
            report("measure", {"phase": "before", "episodes": len(held_out)})
            result = await evaluate(
                held_out, rollout, reward, policy=policy, version=name, temperature=temperature,
                config=config, store=store, phase="evaluate", tick=lambda: report("tick", {}),
            )  # fmt: skip
    (run / "evaluation.json").write_text(result.model_dump_json(indent=2) + "\n")
    report("end", {})
    return result
