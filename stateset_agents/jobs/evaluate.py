"""Measures a policy on held-out scenarios: as its own job, and before, during and after training."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from langchain_core.language_models import BaseChatModel

from stateset_agents.errors import NothingMeasured
from stateset_agents.evaluation import Measurement, measure
from stateset_agents.files import replace_text
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import served_policy
from stateset_agents.jobs.registry import ResolvedJob, resolve
from stateset_agents.jobs.run_folder import make_room_for_threads, write_config
from stateset_agents.policy.litellm import PREFIX, ProviderPolicy
from stateset_agents.reporting.events import (
    EpisodeEnded,
    JobEnded,
    JobStarted,
    MeasurementEnded,
    MeasurementStarted,
    Report,
    ServerSaid,
)
from stateset_agents.reward import declaration_of
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.concurrency import Gate


class Evaluator:
    """Measures versions of one policy on a job's held-out scenarios."""

    def __init__(
        self, job: ResolvedJob, policy: BaseChatModel, store: TraceStore, run: Path, report: Report
    ) -> None:
        self.job, self.policy, self.store, self.run, self.report = job, policy, store, run, report

    async def measure(
        self, phase: str, version: str, temperature: float, versions: Mapping[str, str] | None = None, *,
        on_episode: Callable[[], None] = lambda: None,
    ) -> Measurement:  # fmt: skip
        """Play every held-out scenario once and sum up. `versions` are the versions of nodes that have their own; `on_episode`
        is called after each episode."""
        config, reward = self.job.config, self.job.grading.reward
        gate = Gate(config.concurrency)

        async def play(number: int, scenario: Scenario) -> Trace:
            sampling = Sampling(
                version=version,
                versions=dict(versions or {}),
                temperature=temperature,
                seed=config.seed * 100_003 + number,
                max_tokens=config.max_tokens,
            )
            async with gate.place() as played:
                trace = await self.job.rollout(scenario, self.policy, sampling)
                played(trace.tokens_sampled)
            on_episode()
            return trace

        traces = list(await asyncio.gather(*(play(n, s) for n, s in enumerate(self.job.held_out))))
        # Each is of another scenario: a reward that compares the traces of a group has nothing to compare here.
        compares = declaration_of(reward).compares
        scores = [None] * len(traces) if compares else await reward(traces)
        pending = [
            self.store.append(trace, phase=phase, score=score)
            for trace, score in zip(traces, scores, strict=True)
        ]
        for written in pending:
            await written
        return measure(traces, scores, version=version, temperature=temperature, compared=compares)

    def check(self, result: Measurement) -> None:
        """Before training: raises NothingMeasured if the episodes cannot be trained on. That no tool was called training may
        change."""
        problem = result.problem
        if problem is not None and problem != result.no_tools:
            raise NothingMeasured(problem)

    def report_episode(self) -> None:
        self.report(EpisodeEnded())

    async def measure_once(
        self, phase: str, version: str, temperature: float, versions: Mapping[str, str] | None = None
    ) -> Measurement:  # fmt: skip
        """Like `measure`; the result is stored in the run, and a resumed run reads it from there."""
        kept = self.run / f"{phase}.json"
        if kept.is_file():
            return Measurement.model_validate_json(kept.read_text())
        self.report(MeasurementStarted(phase, len(self.job.held_out)))
        self.store.discard_from(phase, 0)
        result = await self.measure(
            phase, version, temperature, versions, on_episode=self.report_episode
        )
        replace_text(kept, result.model_dump_json(indent=1))
        self.report(MeasurementEnded(phase, result))
        return result


async def evaluate_job(
    config: JobConfig, run: Path, adapter: Path | None, temperature: float, report: Report, *,
    trained: frozenset[str] = frozenset(),
) -> Measurement:  # fmt: skip
    """Measure a policy on held-out scenarios, and on none that it was `trained` on; traces and the result are kept in `run`."""
    make_room_for_threads(config)
    job = resolve(config, only_held_out=True, trained=trained)
    write_config(run, config)
    with TraceStore(run / "traces.db") as store:
        async with _evaluated(config, adapter, run, report) as (policy, version):
            report(JobStarted(0, len(job.held_out), run))
            report(MeasurementStarted("evaluate", len(job.held_out)))
            evaluator = Evaluator(job, policy, store, run, report)
            result = await evaluator.measure(
                "evaluate", version, temperature, on_episode=evaluator.report_episode
            )
    (run / "evaluation.json").write_text(result.model_dump_json(indent=2) + "\n")
    report(JobEnded())
    return result


@contextlib.asynccontextmanager
async def _evaluated(
    config: JobConfig, adapter: Path | None, run: Path, report: Report
) -> AsyncIterator[tuple[BaseChatModel, str]]:
    """The policy to measure (a served one, or a provider's model) and its version."""
    if config.model.startswith(PREFIX):
        name = config.model.removeprefix(PREFIX)
        yield ProviderPolicy(provider_model=name, base_url=config.base_url), name
        return
    async with served_policy(
        config, adapter, run, lambda message: report(ServerSaid(message))
    ) as server:
        yield server.policy(), server.name
