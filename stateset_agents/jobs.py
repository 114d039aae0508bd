"""Jobs: the wiring of a training run and of an evaluation, for the command line and the server alike."""

import asyncio
import contextlib
import functools
import importlib
import inspect
import itertools
import json
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from pydantic import Field, ValidationError, model_validator

from stateset_agents.engines import (
    check_tokenizer,
    model_path,
    policy_server,
    renderer,
    served_policy,
)
from stateset_agents.errors import BadInput, PolicyUnreachable, RunBroken
from stateset_agents.evaluation import Measurement, measure, paired_gain
from stateset_agents.graphs import orchestrator
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.graphs.rollout import converse, hold
from stateset_agents.graphs.your_graph import OwnGraph
from stateset_agents.meters import Meters, read_meters
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy import connect
from stateset_agents.providers import PREFIX, ProviderPolicy
from stateset_agents.reward import Reward, Score, about_of, scorable
from stateset_agents.rewards import objectives
from stateset_agents.rewards.cache import CachedReward
from stateset_agents.rewards.composite import (
    CompositeReward,
    objectives_reward,
    seed_reward,
    shop_reward,
)
from stateset_agents.rewards.disclosure import DisclosureReward
from stateset_agents.rewards.effort import EffortReward, LatencyReward
from stateset_agents.rewards.feedback import FeedbackReward
from stateset_agents.rewards.helpfulness import HelpfulnessReward
from stateset_agents.rewards.judge import Budget, judge_named
from stateset_agents.rewards.language import LanguageReward
from stateset_agents.rewards.manner import MannerReward
from stateset_agents.rewards.outcome import OutcomeReward
from stateset_agents.rewards.rules import DisciplineReward, RulesReward
from stateset_agents.rewards.safety import SafetyReward
from stateset_agents.scenario import Scenario, load_scenarios
from stateset_agents.settings import load_settings
from stateset_agents.tools.scenarios import intents_of
from stateset_agents.tools.scenarios import scenarios as generate_scenarios
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.config import ONE, TrainConfig
from stateset_agents.trainers.gate import Gate
from stateset_agents.trainers.limits import COSTS, Limit
from stateset_agents.usable import LEARNED_FROM, Method, Usable
from stateset_agents.versions import publish

GRAPHS = (*DOMAINS, orchestrator.NAME)
"""The shop's own graphs."""
HELD_OUT_SEED = 90_000
"""Where held-out shops begin, unless a caller says otherwise."""

RolloutWith = Callable[[Scenario, BaseChatModel, Sampling], Awaitable[Trace]]
HoldWith = Callable[[Scenario, BaseChatModel, Sampling], Awaitable[Any]]
Report = Callable[[str, dict[str, Any]], None]
"""Called with an event's name (start, measure, tick, measured, train, step, end) and its values."""


class JobConfig(TrainConfig):
    """A training run: its settings, and what is trained on what. Written to `config.json` beside its results."""

    graph: str = "service"
    world: str | None = None
    """`module:function` of a scenario: what an episode of a graph of one's own acts on, with a `clone` method."""
    reward: str | None = None
    node_rewards: dict[str, str] = Field(default_factory=dict)
    """Rewards of their own for calls at these nodes; `credit: node` reads them."""
    scenarios: str | None = None
    """A file; without it scenarios are generated."""
    model: str = "seed"
    base_url: str | None = None
    """Policy servers that run already, with commas between them; without it an engine is started."""
    engine: Literal["embedded", "vllm", "auto"] | None = None
    """Which; the settings' without it."""
    replicas: int = Field(default=1, ge=1)
    """How many of it."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    max_model_len: int | None = Field(default=None, ge=16)
    tool_parser: str | None = None
    """What reads tool calls out of answers: vLLM's name for it; the model's chat template tells, without it."""
    customer: str | None = None
    """NAME@URL of a model that plays the customer, in the place of rules."""
    from_traces: str | None = None
    """A store whose traces are trained on, in the place of episodes."""
    method: Method = "auto"
    """How a store is learned from: by rewards (`rl`), by imitating its best (`sft`), or by preferring better to worse (`dpo`)."""
    warm_start: str | None = None
    """What is imitated before the first episode: `oracle`, or a store's best traces."""
    warm_traces: int = Field(default=256, ge=8)
    """How many traces; `warm_start` reads it."""
    held_out: int = Field(default=120, ge=1)
    held_out_seed: int = HELD_OUT_SEED
    eval_every: int = Field(default=0, ge=0)
    """Measure on the held-out scenarios after every so-manieth step as well; 0: before and after alone."""
    threads: int = Field(default=2, ge=1)
    log: tuple[str, ...] = ("tensorboard",)
    """Trackers by name, beside the JSON lines that are always written."""

    @model_validator(mode="after")
    def _read(self) -> "JobConfig":
        if self.node_rewards and self.credit != "node":
            raise ValueError("node_rewards: credit 'node' alone reads them")
        if self.full and self.base_url:
            raise ValueError(
                "full: a server of one's own can swap adapters, and not whole models; leave base_url out"
            )
        if self.full and self.engine == "vllm":
            raise ValueError(
                "full: vLLM swaps adapters while it runs, and whole models only between GPUs; leave it out, or take the embedded engine"
            )
        started = {"engine", "replicas", "gpu_memory_utilization", "max_model_len", "tool_parser"}
        if self.base_url and (wrong := sorted(self.model_fields_set & started)):
            raise ValueError(
                f"{wrong[0]}: base_url names servers that run already, which do not read it"
            )
        if self.node_rewards and self.nodes and not set(self.node_rewards) <= set(self.nodes):
            raise ValueError(
                f"node_rewards: expected nodes that train, found {sorted(self.node_rewards)}"
            )
        if self.world and self.graph in GRAPHS:
            raise ValueError("world: the shop's own graphs have theirs")
        if "warm_traces" in self.model_fields_set and self.warm_start is None:
            raise ValueError("warm_traces: warm_start alone reads it")
        if self.from_traces is not None:
            wrong = sorted(self.model_fields_set & PLAYED)
            if wrong:
                raise ValueError(
                    f"{wrong[0]}: training from a store does not read it, since nothing is played"
                )
            return self
        wrong = sorted(self.model_fields_set & {"epochs", "least_ess", "method"})
        if wrong:
            raise ValueError(f"{wrong[0]}: training from a store (from_traces) alone reads it")
        return self


PLAYED = {
    "graph", "world", "scenarios", "base_url", "engine", "replicas", "gpu_memory_utilization", "max_model_len", "tool_parser", "customer", "held_out", "held_out_seed", "eval_every", "group_size", "forks", "temperature",
    "max_tokens", "concurrency", "staleness", "resample", "auto_adjust", "early_stopping", "patience", "kl_target", "shuffle_rewards",
    "warm_start", "warm_traces",
}  # fmt: skip
"""What is said of how episodes are played and measured."""


def check_config(values: dict[str, Any]) -> JobConfig:
    """A config from options. Raises BadInput that names the option, what it was and what it may be."""
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of how settings go together
            name, _, told = first["msg"].removeprefix("Value error, ").partition(": ")
            raise BadInput(f"--{name.replace('_', '-')}: {told}.") from None
        name = str(first["loc"][0]).replace("_", "-")
        raise BadInput(f"--{name}: {first['msg']}, found {first['input']!r}.") from None


def load_object(name: str, what: str) -> Any:
    """`package.module:attribute`, looked up from the working directory too. Raises BadInput."""
    module, _, attribute = name.partition(":")
    if not attribute:
        raise BadInput(f"Expected {what} to be 'service' or 'package.module:name', found {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise BadInput(f"Expected {what} {name!r} to be importable, found: {error}.") from None
    except AttributeError:
        raise BadInput(
            f"Expected {attribute!r} in module {module!r}, found no such name."
        ) from None


def find_rollout(graph: str, customer: str | None = None, world: str | None = None) -> RolloutWith:
    """How an episode of the named graph is run; `customer` is NAME@URL of a model that plays the customer."""
    if graph in GRAPHS:
        return functools.partial(converse, graph=graph, customer=_customer_model(customer))
    if customer is not None:
        raise BadInput(f"--customer: only the shop's own graphs talk to one, found {graph!r}.")
    found = OwnGraph(load_object(graph, "--graph"), graph, world=_world(world))
    rollout: RolloutWith = found.rollout
    return rollout


def find_hold(graph: str, customer: str | None = None, world: str | None = None) -> HoldWith:
    """As `find_rollout`, for episodes that can be forked."""
    if graph in GRAPHS:
        return functools.partial(hold, graph=graph, customer=_customer_model(customer))
    held: HoldWith = OwnGraph(load_object(graph, "--graph"), graph, world=_world(world)).hold
    return held


def _world(name: str | None) -> Callable[[Scenario], Any] | None:
    if name is None:
        return None
    found: Callable[[Scenario], Any] = load_object(name, "--world")
    return found


def _customer_model(customer: str | None) -> BaseChatModel | None:
    if customer is None:
        return None
    name, at, url = customer.partition("@")
    if not (name and at and url.startswith(("http://", "https://"))):
        raise BadInput(
            f"--customer: expected NAME@URL, such as gpt-x@https://host/v1, found {customer!r}."
        )
    key = os.environ.get("OPENAI_API_KEY", "EMPTY")
    return connect(url, name, api_key=key, exact=False).model_copy(
        update={"max_tokens": 120, "temperature": 0.7}
    )


class FunctionReward:
    """A plain function of a trace as a reward: a number, a Score, or None."""

    def __init__(self, function: Callable[[Trace], Any], name: str) -> None:
        self.function = function
        self.name = name

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        scores: list[Score | None] = []
        for trace in traces:
            value = self.function(trace) if scorable(trace) else None
            if isinstance(value, int | float):
                if not math.isfinite(value):
                    raise RunBroken(
                        f"Expected a finite number, a Score or None of the reward {self.name!r}, found {value} for trace {trace.id!r}."
                    )
                value = Score(value=value)
            scores.append(value)
        return scores


NAMED: dict[str, Callable[[], Reward]] = {
    "seed": seed_reward,
    "outcome": OutcomeReward,
    "rules": RulesReward,
    "discipline": DisciplineReward,
    "disclosure": DisclosureReward,
    "effort": EffortReward,
    "latency": LatencyReward,
    "language": LanguageReward,
    "manner": MannerReward,
    "helpfulness": HelpfulnessReward,
    "safety": SafetyReward,
    "fairness": objectives.FairnessReward,
}
"""Rewards by name, beside `shop`, for `--reward` and the commands below `rewards`."""


def find_reward(reward: str | None) -> Reward:
    """The shop's reward, one by its name (`NAMED`), feedback of one kind (`feedback:csat:1:5`), business objectives (`objectives:csat=0.5,gross_margin=0.5`),
    an object with our protocol, or a function of a trace."""
    if reward in (None, "shop"):
        return shop_reward()
    assert reward is not None
    if reward in NAMED:
        return NAMED[reward]()
    if reward.startswith("gdpo:"):
        return _gdpo(reward)
    if reward.startswith("feedback:"):
        return _feedback_reward(reward)
    if reward.startswith(("judge:", "judge-relative:")):
        return _judge(reward)
    if reward.startswith("neural:"):
        from stateset_agents.trainers.reward_model import NeuralReward

        return NeuralReward(Path(reward.removeprefix("neural:")))
    if reward.startswith("objectives:"):
        return objectives_reward(objectives.told(reward))
    found = load_object(reward, "--reward")
    if inspect.isclass(found):
        try:
            found = found()
        except TypeError as error:
            raise BadInput(
                f"--reward {reward}: expected a class that needs no arguments, found: {error}"
            ) from None
    if inspect.isfunction(found):
        return FunctionReward(found, reward)
    if not callable(found):
        raise BadInput(f"Expected {reward!r} to be callable, found {type(found).__name__}.")
    result: Reward = found
    return result


def _judge(told: str) -> Reward:
    """A judge within the settings' budget; what it said is kept in `judge.db` beside the runs."""
    settings = load_settings()
    budget = Budget(tokens=settings.judge_tokens, usd=settings.judge_usd)
    judge = judge_named(told, budget=budget, concurrency=settings.judge_concurrency)
    settings.runs.mkdir(parents=True, exist_ok=True)
    return CachedReward(judge, settings.runs / "judge.db")


def _gdpo(told: str) -> Reward:
    """`gdpo:outcome=1,rules=0.3`: rewards by name, each normalised within the group."""
    weights = {}
    for part in told.removeprefix("gdpo:").split(","):
        name, _, weight = part.partition("=")
        try:
            weights[NAMED[name]()] = float(weight or 1.0)
        except (KeyError, ValueError):
            raise BadInput(
                f"--reward: expected gdpo:NAME=WEIGHT,… of {', '.join(NAMED)}, found {part!r}."
            ) from None
    return CompositeReward(weights, how="gdpo")


def _feedback_reward(told: str) -> Reward:
    _, key, *ends = told.split(":")
    try:
        low, high = map(float, ends) if ends else (0.0, 1.0)
    except ValueError:
        raise BadInput(
            f"--reward: expected feedback:KEY or feedback:KEY:LOW:HIGH, such as feedback:csat:1:5, found {told!r}."
        ) from None
    return FeedbackReward(key, low=low, high=high)


def find_scenarios(
    config: JobConfig, *, only_measured: bool = False
) -> tuple[list[Scenario], list[Scenario]]:
    """Training and held-out scenarios: generated, or a file's. In a file those of the splits development
    and held_out are measured on; where there are none, every fourth, or all with `only_measured`."""
    if config.scenarios is None:
        if config.graph not in GRAPHS:
            raise BadInput(
                f"--graph {config.graph} needs --scenarios FILE: only the shop's own graphs have theirs."
            )
        intents = intents_of(config.graph)
        endless = generate_scenarios(seed=config.seed, split="train", intents=intents)
        training = list(itertools.islice(endless, config.steps * config.groups))
        unseen = generate_scenarios(seed=config.held_out_seed, split="held_out", intents=intents)
        return training, list(itertools.islice(unseen, config.held_out))
    every = load_scenarios(Path(config.scenarios))
    measured = [scenario.split in ("development", "held_out") for scenario in every]
    if only_measured:
        held_out = [s for s, mine in zip(every, measured, strict=True) if mine] or every
        return [], held_out[: config.held_out]
    if not any(measured):
        measured = [number % 4 == 3 for number in range(len(every))]
    held_out = [s for s, mine in zip(every, measured, strict=True) if mine]
    training = [s for s, mine in zip(every, measured, strict=True) if not mine]
    if not (training and held_out):
        raise BadInput(
            f"--scenarios: expected some to train on and some to measure on, found {len(training)} and "
            f"{len(held_out)} in {config.scenarios!r}. Without splits every fourth is measured on."
        )
    return training, held_out[: config.held_out]


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


def find_node_rewards(config: JobConfig) -> dict[str, Reward]:
    """Rewards of their own, by node."""
    return {node: find_reward(name) for node, name in config.node_rewards.items()}


def find_limits(config: JobConfig) -> list[Limit]:
    """Limits by name, or what a function of ours and yours says of a trace."""
    found = []
    for name, share in config.limits.items():
        if name not in COSTS and ":" not in name:
            raise BadInput(
                f"--limit: expected {', '.join(COSTS)} or module:function, found {name!r}."
            )
        cost = COSTS[name] if name in COSTS else load_object(name, "--limit")
        found.append(Limit(name=name, share=share, cost=cost))
    return found


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


def load_config(run: Path) -> JobConfig:
    """The config of a run. What is as it would be unsaid was not said."""
    stored = run / "config.json"
    if not stored.is_file():
        raise BadInput(f"Expected a run with config.json at {str(run)!r}, found none.")
    plain = JobConfig().model_dump(mode="json")
    values = json.loads(stored.read_text())
    return check_config({k: v for k, v in values.items() if v != plain.get(k, ...)})


async def train_job(config: JobConfig, run: Path, report: Report) -> dict[str, Any]:
    """Measure, train, measure again; go on where a killed run stopped. Returns the summary."""
    import torch
    from transformers import AutoTokenizer

    from stateset_agents.trainers import loop
    from stateset_agents.trainers.learner import version

    clock = _clock(run)
    rollout = find_rollout(config.graph, config.customer, config.world)
    reward = find_reward(config.reward)
    training, held_out = find_scenarios(config)
    torch.set_num_threads(config.threads)
    (run / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(model_path(config.model))
    with TraceStore(run / "traces.db") as store:
        async with policy_server(config, run, _told(report)) as (url, base_name):
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
