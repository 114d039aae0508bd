"""`try`: a few episodes with a model, and what they show of it."""

import asyncio
from pathlib import Path

from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import Say, served_policy
from stateset_agents.jobs.registry import resolve
from stateset_agents.reporting.first_look import FirstLook, first_look
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.store import TraceStore

SEED = 1


async def first_look_job(config: JobConfig, run: Path, adapter: Path | None, say: Say) -> FirstLook:
    """Play `config.held_out` episodes at its temperature; the traces are kept in `run`."""
    job = resolve(config, only_held_out=True)
    scenarios = job.held_out[: config.held_out]
    async with served_policy(config, adapter, run, say) as server:
        policy = server.policy(retry_seconds=0)

        async def play(number: int) -> Trace:
            sampling = Sampling(
                version=server.name, temperature=config.temperature, seed=SEED + number, max_tokens=config.max_tokens
            )  # fmt: skip
            return await job.rollout(scenarios[number], policy, sampling)

        traces = list(await asyncio.gather(*map(play, range(len(scenarios)))))
    with TraceStore(run / "traces.db") as store:
        for trace in traces:
            store.append(trace, phase="try")
    return first_look(traces)
