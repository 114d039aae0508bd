"""Resolves names of the command line to objects: graphs, rewards and limits; built-in ones by name, your own as
`package.module:attribute`."""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from stateset_agents.errors import BadInput
from stateset_agents.graphs.custom import CustomGraph
from stateset_agents.graphs.names import GRAPHS
from stateset_agents.graphs.rollout import play_episode, play_forkable
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.scenario_sets import find_scenarios
from stateset_agents.jobs.shops import shops_of
from stateset_agents.policy.chat_model import connect
from stateset_agents.reward import Reward
from stateset_agents.rewards import objectives
from stateset_agents.rewards.budget import Budget
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
from stateset_agents.rewards.function import FunctionReward
from stateset_agents.rewards.helpfulness import HelpfulnessReward
from stateset_agents.rewards.judge import judge_named
from stateset_agents.rewards.language import LanguageReward
from stateset_agents.rewards.manner import MannerReward
from stateset_agents.rewards.outcome import OutcomeReward
from stateset_agents.rewards.rules import DisciplineReward, RulesReward
from stateset_agents.rewards.safety import SafetyReward
from stateset_agents.scenario import Scenario
from stateset_agents.settings import load_settings
from stateset_agents.tools.rules import Rule, parse_rules, replaced
from stateset_agents.tools.toolset import SIGNATURES, shop_rules
from stateset_agents.trace import Sampling, Trace
from stateset_agents.trainers.constraints import COSTS, Limit
from stateset_agents.trainers.grading import Grading

PolicyRollout = Callable[[Scenario, BaseChatModel, Sampling], Awaitable[Trace]]
"""Plays an episode with a policy."""
PolicyForkable = Callable[[Scenario, BaseChatModel, Sampling], Awaitable[Any]]
"""Plays an episode that can be forked."""


@dataclass(frozen=True, kw_only=True)
class ResolvedJob:
    """A job with its names resolved, once."""

    config: JobConfig
    rollout: PolicyRollout
    play_forkable: PolicyForkable
    grading: Grading
    training: list[Scenario] = field(default_factory=list)
    held_out: list[Scenario] = field(default_factory=list)


def resolve(
    config: JobConfig, *, only_held_out: bool = False, trained: frozenset[str] = frozenset()
) -> ResolvedJob:
    """Resolve a job. `only_held_out`: measure on all scenarios of a file that a policy was not `trained` on. Raises BadInput for
    an unknown name."""
    training, held_out = find_scenarios(config, only_held_out=only_held_out, trained=trained)
    return ResolvedJob(
        config=config,
        rollout=find_rollout(config),
        play_forkable=find_forkable(config),
        grading=find_grading(config),
        training=training,
        held_out=held_out,
    )


def load_object(name: str, option: str) -> Any:
    """`package.module:attribute`, looked up from the working directory too. Raises BadInput."""
    module, _, attribute = name.partition(":")
    if not attribute:
        known = {"--graph": GRAPHS, "--reward": ["shop", *NAMED], "--limit": COSTS}.get(option, ())
        raise BadInput(
            f"{option}: expected {', '.join([*known, 'package.module:name'])}, found {name!r}."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise BadInput(f"Expected {option} {name!r} to be importable, found: {error}.") from None
    except AttributeError:
        raise BadInput(
            f"Expected {attribute!r} in module {module!r}, found no such name."
        ) from None


def find_rollout(config: JobConfig) -> PolicyRollout:
    """How an episode is played: in the bundled shop, in one over MCP, or by a graph of your own."""
    if config.bundled:
        return functools.partial(play_episode, **_shop_options(config))
    rollout: PolicyRollout = custom_graph(config).play_episode
    return rollout


def find_forkable(config: JobConfig) -> PolicyForkable:
    """Like `find_rollout`, for episodes that can be forked."""
    if config.bundled:
        return functools.partial(play_forkable, **_shop_options(config))
    forkable: PolicyForkable = custom_graph(config).play_forkable
    return forkable


def _shop_options(config: JobConfig) -> dict[str, Any]:
    return {
        "graph": config.graph,
        "customer": _customer_model(config.customer),
        "rules": rules_of(config.rules),
        "shops": shops_of(config),
    }


def rules_of(file: str | Path | None) -> tuple[Rule, ...] | None:
    """The shop's rules with those of a file, or None without one. Raises BadInput with the line of a wrong rule."""
    if file is None:
        return None
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"--rules: expected a file of rules at {str(file)!r}, found {error.strerror}."
        ) from None
    return replaced(shop_rules(), parse_rules(text, where=str(file), tools=SIGNATURES))


def custom_graph(config: JobConfig) -> CustomGraph:
    """A graph of your own by its name, `package.module:attribute`, or an agent in a shop over MCP."""
    customer = _customer_model(config.customer)
    if config.mcp is not None:
        try:
            from stateset_agents.jobs.mcp_shop import episodes
        except ImportError as error:
            raise BadInput(
                f"--mcp: expected the package {error.name}, found none: install the extra 'mcp'."
            ) from None
        return episodes(config, customer)
    made = load_object(config.graph, "--graph")
    return CustomGraph(made, config.graph, world=_world(config.world), customer=customer)


def _world(name: str | None) -> Callable[[Scenario], Any] | None:
    if name is None:
        return None
    world: Callable[[Scenario], Any] = load_object(name, "--world")
    return world


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
"""Rewards by name, besides `shop`, for `--reward` and the `rewards` commands."""


def find_grading(config: JobConfig) -> Grading:
    """The reward of a config, the rewards of single nodes, and the limits."""
    return Grading(
        reward=find_reward(config.reward),
        node_rewards={node: find_reward(name) for node, name in config.node_rewards.items()},
        limits=find_limits(config),
    )


def find_reward(name: str | None) -> Reward:
    """The shop's reward, one by its name (`NAMED`), feedback (`feedback:csat:1:5`), business objectives
    (`objectives:csat=0.5,gross_margin=0.5`), rewards normalised one by one (`gdpo:outcome=1,rules=0.3`), a judge
    (`judge:MODEL@URL`, `judge-relative:…`), a reward model (`neural:FOLDER`), or `package.module:reward`."""
    if name is None or name == "shop":
        return shop_reward()
    if name in NAMED:
        return NAMED[name]()
    if name.startswith("gdpo:"):
        return _gdpo(name)
    if name.startswith("feedback:"):
        return _feedback_reward(name)
    if name.startswith(("judge:", "judge-relative:")):
        return _judge(name)
    if name.startswith("neural:"):
        from stateset_agents.trainers.reward_model import NeuralReward

        return NeuralReward(Path(name.removeprefix("neural:")))
    if name.startswith("objectives:"):
        return objectives_reward(objectives.parse_objectives(name))
    return _own_reward(name)


def _own_reward(name: str) -> Reward:
    """A user's object, class or function."""
    value = load_object(name, "--reward")
    if inspect.isclass(value):
        try:
            value = value()
        except TypeError as error:
            raise BadInput(
                f"--reward {name}: expected a class that needs no arguments, found: {error}"
            ) from None
    if inspect.isfunction(value):
        return FunctionReward(value, name)
    score = getattr(value, "score", None)
    if callable(score) and not callable(value):  # a class of its own, with `score(trace)`
        return FunctionReward(score, name)
    if not callable(value):
        raise BadInput(
            f"--reward {name}: expected a function of a trace, or a class with `score(trace)`, found {type(value).__name__}."
        )
    reward: Reward = value
    return reward


def _judge(name: str) -> Reward:
    """A judge with the settings' budget; its scores are cached in `judge.db` beside the runs."""
    settings = load_settings()
    budget = Budget(tokens=settings.judge_tokens, usd=settings.judge_usd)
    judge = judge_named(name, budget=budget, concurrency=settings.judge_concurrency)
    settings.runs.mkdir(parents=True, exist_ok=True)
    return CachedReward(judge, settings.runs / "judge.db")


def _gdpo(name: str) -> Reward:
    """`gdpo:outcome=1,rules=0.3`: rewards by name, each normalised within the group."""
    weights = {}
    for part in name.removeprefix("gdpo:").split(","):
        reward, _, weight = part.partition("=")
        try:
            weights[NAMED[reward]()] = float(weight or 1.0)
        except (KeyError, ValueError):
            raise BadInput(
                f"--reward: expected gdpo:NAME=WEIGHT,… of {', '.join(NAMED)}, found {part!r}."
            ) from None
    return CompositeReward(weights, how="gdpo")


def _feedback_reward(name: str) -> Reward:
    _, key, *ends = name.split(":")
    try:
        low, high = map(float, ends) if ends else (0.0, 1.0)
    except ValueError:
        raise BadInput(
            f"--reward: expected feedback:KEY or feedback:KEY:LOW:HIGH, such as feedback:csat:1:5, found {name!r}."
        ) from None
    return FeedbackReward(key, low=low, high=high)


def find_limits(config: JobConfig) -> list[Limit]:
    """Limits by name, or by a function of a trace that returns its cost."""
    limits = []
    for name, share in config.limits.items():
        if name not in COSTS and ":" not in name:
            raise BadInput(
                f"--limit: expected {', '.join(COSTS)} or module:function, found {name!r}."
            )
        cost = COSTS[name] if name in COSTS else load_object(name, "--limit")
        limits.append(Limit(name=name, share=share, cost=cost))
    return limits
