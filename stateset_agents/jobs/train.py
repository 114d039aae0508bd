"""A training job: resolve -> measure -> train -> measure -> summarise. A killed run resumes where it stopped."""

import contextlib
from pathlib import Path
from typing import Any

from stateset_agents.errors import PolicyUnreachable
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.evaluate import Evaluator
from stateset_agents.jobs.policy_server import PolicyServer, policy_server
from stateset_agents.jobs.registry import ResolvedJob, resolve
from stateset_agents.jobs.run_folder import (
    Clock,
    link_weights,
    make_room_for_threads,
    write_config,
    write_json,
)
from stateset_agents.jobs.scenario_sets import keep_split
from stateset_agents.jobs.shops import check_unchanged
from stateset_agents.jobs.summary import Measurements, summarise
from stateset_agents.jobs.tokenizer import check_tokenizer
from stateset_agents.jobs.warm_start import warm_start
from stateset_agents.policy.chat_model import Policy
from stateset_agents.policy.metrics import Metrics, read_metrics
from stateset_agents.policy.rendering import Renderer, renderer_of
from stateset_agents.policy.weight_files import model_path
from stateset_agents.reporting.events import (
    Event,
    JobEnded,
    JobStarted,
    MeasurementEnded,
    Report,
    ServerSaid,
    StepEnded,
    TrainingStarted,
)
from stateset_agents.scenario import Scenario
from stateset_agents.settings import load_settings
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.step_log import StepLog


async def train_job(config: JobConfig, run: Path, report: Report) -> dict[str, Any]:
    """Measure, train, measure again; continue where a killed run stopped. Returns the summary."""
    import torch

    from stateset_agents.trainers.learner import check_learned, version
    from stateset_agents.trainers.loop import versions_by_node

    clock = Clock(run)
    report = _timed(report, clock)
    make_room_for_threads(config)
    job = resolve(config)
    torch.set_num_threads(config.threads)
    write_config(run, config)
    check_unchanged(config, run)
    keep_split(run, job.training)
    renderer = renderer_of(model_path(config.model))
    with TraceStore(run / "traces.db") as store:
        say = lambda message: report(ServerSaid(message))
        async with policy_server(config, run, say, training=True) as server:
            report(JobStarted(len(job.training), len(job.held_out), run))
            await check_tokenizer(server.pool, server.name, renderer)
            policy = server.policy().model_copy(update={"render": renderer.prompt})
            evaluator = Evaluator(job, policy, store, run, report)
            before = await evaluator.measure_once("before", server.name, config.temperature)
            evaluator.check(before)
            greedy_before = await evaluator.measure_once("greedy_before", server.name, 0.0)
            training = _Training(job, run, server, policy, evaluator, report)
            learner, base = await training.run_steps(renderer)
            if config.warm_start is None:
                check_learned(learner.log, after=1)
            newest = {name: version(run, learner.step, name) for name in config.trained}
            versions, name = versions_by_node(newest, config, base)
            after = await evaluator.measure_once("after", name, config.temperature, versions)
            greedy_after = await evaluator.measure_once("greedy_after", name, 0.0, versions)
    link_weights(run, learner.checkpoints.weights(learner.step))
    measured = Measurements(
        before=before, greedy_before=greedy_before, after=after, greedy_after=greedy_after
    )
    summary = summarise(config, measured, learner.log, clock.read())
    if summary["problem"] is None and not any(line.used for line in learner.log):
        summary["problem"] = after.problem
    write_json(run / "summary.json", summary)
    report(JobEnded())
    return summary


def _timed(report: Report, clock: Clock) -> Report:
    """Read the clock at each event, so that a killed run knows how long it worked."""

    def timed(event: Event) -> None:
        if isinstance(event, MeasurementEnded | StepEnded):
            clock.read()
        report(event)

    return timed


class _Training:
    """The training part of a job: its loop, with what is measured between the steps."""

    def __init__(
        self, job: ResolvedJob, run: Path, server: PolicyServer, policy: Policy, evaluator: Evaluator, report: Report
    ) -> None:  # fmt: skip
        self.job, self.run, self.server, self.policy = job, run, server, policy
        self.evaluator, self.report = evaluator, report
        self._base = server.name
        self._metrics = Metrics()

    async def run_steps(self, renderer: Renderer) -> tuple[Any, str]:
        """Run the remaining steps. Returns the learner, and the version that answers at nodes without an adapter."""
        from stateset_agents.trainers import loop

        job, config = self.job, self.job.config
        warm, self._base = await warm_start(
            config, self.run, renderer, job.grading.reward, self.server, self.report
        )
        self.report(TrainingStarted(config.steps))
        await self._read_metrics()
        learner = await loop.train(
            loop.InitialPolicy(
                base=str(warm) if warm and config.full else model_path(config.model),
                tokenizer=renderer.tokenizer,
                served=self._base,
                adapter=None if config.full else warm,
            ),
            loop.Episodes(
                scenarios=job.training,
                rollout=self._play,
                play_forkable=self._play_forkable if config.forks else None,
            ),
            job.grading,
            loop.RunOutputs(
                run=self.run,
                store=self.evaluator.store,
                report=lambda log: self.report(StepEnded(log)),
                trackers=config.log,
            ),
            config.model_copy(update={"groups": min(config.groups, len(job.training))}),
            publish=self._publish,
            measure=self._measure,
        )
        return learner, self._base

    async def _play(self, scenario: Scenario, sampling: Sampling) -> Trace:
        return await self.job.rollout(scenario, self.policy, sampling)

    async def _play_forkable(self, scenario: Scenario, sampling: Sampling) -> Any:
        return await self.job.play_forkable(scenario, self.policy, sampling)

    async def _publish(self, version: str, weights: Path, before: int) -> None:
        await self.server.publisher.publish(
            version, weights, before, retry_seconds=load_settings().retry_seconds
        )

    async def _measure(self, log: StepLog, served: dict[str, str]) -> None:
        """Add the prefix cache's hits of this step, and measure the held-out scenarios if they are due."""
        from stateset_agents.trainers.loop import versions_by_node

        earlier = self._metrics
        await self._read_metrics()
        log.prefix_hits = self._metrics.since(earlier).hit_rate
        config = self.job.config
        if config.eval_every and log.step % config.eval_every == 0:
            versions, name = versions_by_node(served, config, self._base)
            result = await self.evaluator.measure(
                f"step-{log.step}", name, config.temperature, versions
            )
            share = result.violations / len(self.job.held_out)
            log.held_out = {"violations": share}
            if result.success is not None:
                log.held_out["success"] = result.success

    async def _read_metrics(self) -> None:
        with contextlib.suppress(
            PolicyUnreachable
        ):  # a replica that does not answer counts nothing
            self._metrics = await read_metrics(self.policy.pool)
