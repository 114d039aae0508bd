"""`traces replay`: replays an episode or an app's thread, or lets a policy continue from another tool result."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.runnables import Runnable
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel import Pregel

from stateset_agents.errors import BadInput
from stateset_agents.graphs import replay
from stateset_agents.graphs.replay import Swap, counterfactual
from stateset_agents.jobs.config import JobConfig, check_config, load_config
from stateset_agents.jobs.policy_server import served_policy
from stateset_agents.jobs.registry import load_object, rules_of
from stateset_agents.jobs.shops import shops_of
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.weight_files import find_adapter
from stateset_agents.settings import load_settings
from stateset_agents.trace import Trace
from stateset_agents.traces import replay as recorded

BASE = "policy"
"""The version of a policy without an adapter."""


def parse_swap(text: str) -> Swap:
    """`TOOL=RESULT`, the result as a JSON object. Raises BadInput for anything else."""
    tool, _, value = text.partition("=")
    try:
        result = json.loads(value)
    except ValueError:
        result = None
    if not tool or not isinstance(result, dict):
        raise BadInput(f"--set: expected TOOL=RESULT with a JSON object, found {text!r}.")
    return Swap(tool, result)


def config_beside(store: str) -> JobConfig | None:
    """The config of the run that a store is in, if it is in one."""
    folder = Path(store)
    folder = folder if folder.is_dir() else folder.parent
    return load_config(folder) if (folder / "config.json").is_file() else None


async def replay_episode(trace: Trace, store: str) -> tuple[Trace, str | None]:
    """Replay an episode of a shop's graph, in the shop and under the rules of the run that its store is in. Returns it and its first
    difference."""
    return await replay.replay(trace, **_setting(config_beside(store)))


def _setting(config: JobConfig | None) -> dict[str, Any]:
    if config is None or not config.bundled:
        return {}
    return {"rules": rules_of(config.rules), "shops": shops_of(config)}


async def replay_app(
    graph: str, traces: Sequence[Trace], swap: Swap | None
) -> tuple[Trace, str | None]:
    """Replay a thread's runs of a custom graph. Returns the messages and the first difference."""
    change = None if swap is None else (swap.tool, swap.result)
    app = load_object(graph, "--graph")
    if not isinstance(app, Runnable) and callable(app):
        app = app(Oracle(plan=()))  # its answers come from the record
    if isinstance(app, Pregel) and app.checkpointer is None:
        app = app.copy({"checkpointer": InMemorySaver()})
    messages, difference = await recorded.replay(app, traces, swap=change)
    again = traces[-1].model_copy(update={"messages": tuple(messages), "model_calls": ()})
    return again, difference


@dataclass(frozen=True, slots=True)
class Continues:
    """The policy that goes on after a changed result."""

    config: JobConfig
    adapter: Path | None


def policy_after(
    trace: Trace, store: str, policy: Path | None, model: str | None, base_url: str | None
) -> Continues:
    """The policy that is named; otherwise the one that played the episode: the run's model, with the run's adapter if it had one.
    Raises BadInput if neither is known."""
    own = config_beside(store)
    base_url = base_url or load_settings().base_url
    if policy is None and model is None and base_url is None and own is None:
        raise BadInput(
            "--set: expected the policy that goes on, since the store is in no run's folder: --policy, --model or --base-url."
        )
    values: dict[str, Any] = {
        "model": model or (own.model if own else "seed"),
        "base_url": base_url,
    }
    if own is not None and model is None and base_url is None:
        values |= {
            name: getattr(own, name)
            for name in ("base_url", "engine", "max_model_len", "tool_parser")
            if getattr(own, name) is not None
        }
    adapter = find_adapter(policy) if policy is not None else None
    played = trace.calls[-1].version if trace.calls else BASE
    run = Path(store) if Path(store).is_dir() else Path(store).parent
    if policy is None and model is None and base_url is None and played != BASE:
        adapter = find_adapter(run)
    print(
        f"goes on with {values['model']}" + (f" and the adapter in {adapter}" if adapter else ""),
        flush=True,
    )
    return Continues(check_config(values), adapter)


async def replay_otherwise(trace: Trace, swap: Swap, then: Continues, store: str) -> Trace:
    """The counterfactual, sampled like the episode."""
    if not any(call.name == swap.tool for call in trace.tool_calls):
        raise BadInput(f"--set: expected a tool that the run called, found {swap.tool!r}.")
    with tempfile.TemporaryDirectory() as folder:
        async with served_policy(then.config, then.adapter, Path(folder)) as server:
            sampling = trace.sampling.model_copy(update={"version": server.name})
            policy_then = server.policy(retry_seconds=0).sampling(sampling)
            return await counterfactual(trace, swap, policy_then, **_setting(config_beside(store)))
