"""`traces replay`: the wiring from the command line's words to an episode, an app, or a policy that goes on."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stateset_agents.errors import BadInput
from stateset_agents.graphs import replay
from stateset_agents.graphs.replay import Swap, counterfactual
from stateset_agents.jobs.config import check_config
from stateset_agents.jobs.policy_server import find_adapter, served_policy
from stateset_agents.jobs.registry import load_object
from stateset_agents.policy.chat_model import connect
from stateset_agents.settings import load_settings
from stateset_agents.trace import Trace
from stateset_agents.traces import replay as recorded


def swap_of(told: str) -> Swap:
    """`TOOL=RESULT`, the result as a JSON object. Raises BadInput for anything else."""
    tool, _, text = told.partition("=")
    try:
        result = json.loads(text)
    except ValueError:
        result = None
    if not tool or not isinstance(result, dict):
        raise BadInput(f"--set: expected TOOL=RESULT with a JSON object, found {told!r}.")
    return Swap(tool, result)


async def episode(trace: Trace) -> tuple[Trace, str | None]:
    """An episode of a shop's graph again, and where it first differs."""
    return await replay.replay(trace)


async def app(graph: str, traces: Sequence[Trace], swap: Swap | None) -> tuple[Trace, str | None]:
    """A thread's runs of somebody's graph again, and where they first differ."""
    change = None if swap is None else (swap.tool, swap.result)
    said, differs = await recorded.replay(load_object(graph, "--graph"), traces, swap=change)
    return traces[-1].model_copy(update={"messages": tuple(said), "model_calls": ()}), differs


async def going_on(
    trace: Trace, swap: Swap, policy: Path | None, model: str, base_url: str | None
) -> Trace:
    """The counterfactual, with a policy of a run, of a server, or the seed's, sampled as the episode was."""
    adapter = find_adapter(policy) if policy else None
    config = check_config({"model": model, "base_url": base_url or load_settings().base_url})
    with tempfile.TemporaryDirectory() as folder:
        async with served_policy(config, adapter, Path(folder)) as (url, name):
            sampling = trace.sampling.model_copy(update={"version": name})
            return await counterfactual(trace, swap, connect(url, name).sampling(sampling))
