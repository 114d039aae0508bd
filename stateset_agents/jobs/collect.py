"""Fill a store with episodes of a policy, for `train --from-traces`."""

from pathlib import Path
from typing import Any

from stateset_agents.evaluation import measure
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import served_policy
from stateset_agents.jobs.registry import resolve
from stateset_agents.jobs.run_folder import write_config, write_json
from stateset_agents.reporting.events import (
    CollectionStarted,
    EpisodeEnded,
    JobEnded,
    JobStarted,
    Report,
    ServerSaid,
)
from stateset_agents.reward import Score, declaration_of
from stateset_agents.trace import Trace
from stateset_agents.traces.store import TraceStore


async def collect_job(
    config: JobConfig, run: Path, adapter: Path | None, report: Report
) -> dict[str, Any]:
    """Play groups of training scenarios and keep them, with their scores. Returns a summary."""
    from stateset_agents.trainers.rollouts import Plan, Player

    job = resolve(config)
    write_config(run, config)
    scores: list[Score | None] = []
    traces: list[Trace] = []
    with TraceStore(run / "traces.db") as store:
        async with served_policy(
            config, adapter, run, lambda message: report(ServerSaid(message))
        ) as server:
            policy = server.policy()
            player = Player(
                lambda scenario, sampling: job.rollout(scenario, policy, sampling),
                lambda scenario, sampling: job.play_forkable(scenario, policy, sampling),
                config,
            )
            report(JobStarted(len(job.training), 0, run))
            report(CollectionStarted(config.steps * config.groups * config.group_size))
            for step in range(1, config.steps + 1):
                groups = min(config.groups, len(job.training))
                plan = Plan(
                    step=step,
                    scenarios=tuple(
                        ((step - 1) * groups + n) % len(job.training) for n in range(groups)
                    ),
                    group_size=config.group_size,
                    temperature=config.temperature,
                )
                for group in await player.play(plan, job.training, {}, server.name):
                    group_scores = await job.grading.reward(group)
                    pending = [
                        store.append(trace, phase="train", step=0, score=score)
                        for trace, score in zip(group, group_scores, strict=True)
                    ]
                    for written in pending:
                        await written
                        report(EpisodeEnded())
                    scores += group_scores
                    traces += group
            version = server.name
    result = measure(
        traces, scores, version=version, temperature=config.temperature,
        compared=declaration_of(job.grading.reward).compares,
    )  # fmt: skip
    summary = {
        "episodes": len(traces),
        "tokens_sampled": sum(trace.tokens_sampled for trace in traces),
        "success": result.success,
        "measured_by": result.measured_by,
        "problem": result.problem,
        "mean_reward": result.mean_reward,
        "failed": result.failed,
    }
    write_json(run / "summary.json", summary)
    report(JobEnded())
    return summary
