"""`traces replay`: replays an episode or an app's thread, or lets a policy continue from another tool result."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from langchain_core.runnables import Runnable
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel import Pregel

from stateset_agents.errors import BadInput
from stateset_agents.graphs import replay
from stateset_agents.graphs.replay import Swap, counterfactual
from stateset_agents.jobs.config import check_config
from stateset_agents.jobs.policy_server import served_policy
from stateset_agents.jobs.registry import load_object
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.weight_files import find_adapter
from stateset_agents.settings import load_settings
from stateset_agents.trace import Trace
from stateset_agents.traces import replay as recorded


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


async def replay_episode(trace: Trace) -> tuple[Trace, str | None]:
    """Replay an episode of a shop's graph. Returns it and its first difference."""
    return await replay.replay(trace)


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


async def replay_otherwise(
    trace: Trace, swap: Swap, policy: Path | None, model: str, base_url: str | None
) -> Trace:
    """The counterfactual, with a run's, a server's or the seed policy, sampled like the episode."""
    if not any(call.name == swap.tool for call in trace.tool_calls):
        raise BadInput(f"--set: expected a tool that the run called, found {swap.tool!r}.")
    adapter = find_adapter(policy) if policy else None
    config = check_config({"model": model, "base_url": base_url or load_settings().base_url})
    with tempfile.TemporaryDirectory() as folder:
        async with served_policy(config, adapter, Path(folder)) as server:
            sampling = trace.sampling.model_copy(update={"version": server.name})
            policy_then = server.policy(retry_seconds=0).sampling(sampling)
            return await counterfactual(trace, swap, policy_then)
