"""Training from a store, without a policy server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stateset_agents.errors import BadInput
from stateset_agents.files import replace_text
from stateset_agents.jobs.config import JobConfig, flag_of
from stateset_agents.jobs.registry import find_grading
from stateset_agents.jobs.run_folder import link_weights, write_config, write_json
from stateset_agents.policy.rendering import renderer_of
from stateset_agents.policy.weight_files import model_path
from stateset_agents.trace import Trace
from stateset_agents.traces.dataset import LEARNED_FROM, OfflineDataset
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.grading import Grading
from stateset_agents.trainers.imitation import imitate
from stateset_agents.trainers.imitation_log import ImitationLog
from stateset_agents.trainers.loop import InitialPolicy, RunOutputs
from stateset_agents.trainers.offline import train_offline
from stateset_agents.trainers.step_log import StepLog

IMITATION = {
    "from_traces", "method", "model", "reward", "seed", "threads", "epochs", "learning_rate", "beta", "rank", "lora_alpha",
    "lora_dropout", "full", "precision", "gradient_checkpointing", "max_grad_norm", "log",
}  # fmt: skip
"""Fields that SFT and DPO use."""


OfflineReport = Callable[[StepLog | ImitationLog], None]
"""Called with the log line of each step, of both kinds of training."""


async def offline_job(config: JobConfig, run: Path, report: OfflineReport) -> dict[str, Any]:
    """Train on the traces of a store; continue where a killed run stopped. Returns the summary.

    Exact traces are trained on with their rewards. If there are none, text is imitated (SFT) or preferred to worse text (DPO),
    and the summary says why. Raises BadInput if nothing can be learned from, with counts of what there is.
    """
    import torch

    torch.set_num_threads(config.threads)
    grading = find_grading(config)
    assert config.from_traces is not None
    with TraceStore(config.from_traces, create=False) as store:
        dataset = OfflineDataset(_at_the_start(list(store.traces(where=LEARNED_FROM)), run))
        method, reason = dataset.method(config.method)
        if method != "rl" and (wrong := sorted(config.model_fields_set - IMITATION)):
            raise BadInput(f"{flag_of(wrong[0])}: not used by method {method} ({reason}).")
        write_config(run, config)
        renderer = renderer_of(model_path(config.model))
        policy = InitialPolicy(base=model_path(config.model), tokenizer=renderer.tokenizer)
        outputs = RunOutputs(run=run, store=store, report=report, trackers=config.log)
        if method == "rl":
            used = "rl"
            weights, results = await _by_rewards(dataset, policy, grading, outputs, config)
        else:
            weights, log, used = await imitate(
                method, base=policy.base, renderer=renderer, traces=dataset.ended, reward=grading.reward, run=run,
                config=config, report=report,
            )  # fmt: skip
            if used != method:
                reason += "; no request was answered better and worse, so the best are imitated"
            results = {
                "steps": len(log),
                "tokens_trained": sum(line.tokens_trained for line in log),
            }
    link_weights(run, weights)
    summary = {
        "from": config.from_traces, "traces": len(dataset.every), "exact": len(dataset.exact), "method": used,
        "why": reason, **results,
    }  # fmt: skip
    write_json(run / "summary.json", summary)
    return summary


async def _by_rewards(
    dataset: OfflineDataset, policy: InitialPolicy, grading: Grading, outputs: RunOutputs, config: JobConfig
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    groups = dataset.groups()
    sampled_at = config.model_copy(update={"temperature": dataset.temperature()})
    learner = await train_offline(policy, groups, grading, outputs, sampled_at)
    log = learner.log
    return learner.checkpoints.weights(learner.step), {
        "groups": len(groups),
        "ended": log[-1].ended if log else "",
        "ess": [line.ess for line in log],
        "mean_reward": [line.reward for line in log],
        "steps": len(log),
        "tokens_trained": sum(line.tokens_trained for line in log),
    }


def _at_the_start(traces: list[Trace], run: Path) -> list[Trace]:
    """The traces that a run began with: the store may grow, but a resumed run must use the same ones."""
    file = run / "traces.json"
    if not file.is_file():
        replace_text(file, json.dumps([trace.id for trace in traces]))
    places = {name: place for place, name in enumerate(json.loads(file.read_text()))}
    return sorted((t for t in traces if t.id in places), key=lambda trace: places[trace.id])
