"""What options name: graphs, rewards, limits and scenarios, ours by their names and yours as `package.module:attribute`."""

import functools
import importlib
import inspect
import itertools
import math
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from stateset_agents.errors import BadInput, RunBroken
from stateset_agents.graphs.custom import OwnGraph
from stateset_agents.graphs.rollout import converse, hold
from stateset_agents.jobs.config import GRAPHS, JobConfig
from stateset_agents.policy.chat_model import connect
from stateset_agents.reward import Reward, Score, scorable
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
from stateset_agents.tools.scenarios.generator import intents_of
from stateset_agents.tools.scenarios.generator import scenarios as generate_scenarios
from stateset_agents.trace import Sampling, Trace
from stateset_agents.trainers.constraints import COSTS, Limit

RolloutWith = Callable[[Scenario, BaseChatModel, Sampling], Awaitable[Trace]]
HoldWith = Callable[[Scenario, BaseChatModel, Sampling], Awaitable[Any]]


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
