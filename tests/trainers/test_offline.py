"""From a store alone: it learns without a policy server, survives being killed to the bit, and stops when the store is used up."""

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.graphs.mixed_quality import variants
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.jobs.collect import collect_job
from stateset_agents.jobs.config import check_config
from stateset_agents.jobs.offline import offline_job
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.rendering import renderer_of
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Feedback, ModelCall, Sampling, Trace
from stateset_agents.traces.dataset import OfflineDataset
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.imitation import calls, first_difference, rows
from stateset_agents.trainers.model import load_model
from stateset_agents.trajectory import Row
from tests.small import plain_logprobs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 episodes of the seed policy, in groups of 8."""
    run = tmp_path_factory.mktemp("collected")
    config = check_config({"steps": 2, "groups": 4, "group_size": 8, "max_tokens": 64})
    summary = asyncio.run(collect_job(config, run, None, lambda event: None))
    assert summary["episodes"] == 64
    assert summary["failed"] == 0
    return run / "traces.db"


def learn(place: Path, run: Path, **options: Any) -> dict[str, Any]:
    run.mkdir(parents=True)
    if "reward" not in options:
        options["groups"] = 4
    config = check_config({"from_traces": str(place), "log": (), **options})
    return asyncio.run(offline_job(config, run, lambda line: None))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_passes_over_a_store_make_its_better_episodes_likelier(store: Path, tmp_path: Path) -> None:
    summary = learn(store, tmp_path / "run", epochs=3, importance="tapered")
    assert summary["method"] == "rl"
    assert summary["why"] == "64 of 64 traces are exact"
    assert summary["steps"] == 6
    log = lines(tmp_path / "run")
    assert log[0]["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert log[0]["ess"] == pytest.approx(1.0, abs=1e-3)
    assert log[-1]["ess"] < 0.999
    before, after = (
        load_model(str(SEED_POLICY), adapters={"default": place})
        for place in (None, tmp_path / "run" / "adapter")
    )
    with TraceStore(store, create=False) as opened:
        traces = [t for t in opened.traces() if t.goal_score]
    won = [t for t in traces if t.goal_score and t.goal_score.success][:6]
    lost = [t for t in traces if t.goal_score and not t.goal_score.success][:6]

    def rise(group: list[Trace]) -> float:
        rises = []
        for trace in group:
            for call in trace.calls:
                row = Row(
                    prompt=call.prompt_ids, sampled=call.sampled_ids, logprobs=call.logprobs, node="", version=""
                )  # fmt: skip
                gap = plain_logprobs(after, row) - plain_logprobs(before, row)
                rises.append(float(gap.detach().mean()))
        return sum(rises) / len(rises)

    assert rise(won) > rise(lost)


def test_a_store_that_is_used_up_ends_the_run_and_says_so(store: Path, tmp_path: Path) -> None:
    summary = learn(
        store, tmp_path / "run", epochs=40, importance="tapered", least_ess=0.8, learning_rate=5e-3
    )  # fmt: skip
    assert summary["steps"] < 80
    assert "of the recorded trajectories still count (at least 80%)" in summary["ended"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stateset_agents", "train", *arguments]


def test_killed_at_any_point_the_weights_are_the_same_to_the_bit(
    store: Path, tmp_path: Path
) -> None:
    """With dropout, so that the random state has to be the same as well."""
    copies = [tmp_path / name / "traces.db" for name in ("one", "two")]
    for copy in copies:
        copy.parent.mkdir()
        shutil.copy(store, copy)
    options = ["--epochs", "3", "--groups", "2", "--steps", "12", "--log", "none", "--lora-dropout", "0.1",
               "--limit", "violations=0.01"]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str) -> None:
        done = subprocess.run(
            command(*arguments), env=environment, capture_output=True, text=True, timeout=300, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    run("--from-traces", str(copies[0]), *options, "--out", str(tmp_path / "calm"))
    out, rng = tmp_path / "killed", random.Random(0)
    arguments = ["--from-traces", str(copies[1]), *options, "--out", str(out)]
    for kill in range(3):
        process = subprocess.Popen(
            command(*arguments), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # fmt: skip
        while not list(out.glob(f"*/steps/{3 * kill + 1:06d}")) and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        (made,) = out.iterdir()
        arguments = ["--resume", str(made)]
    run(*arguments)
    (calm,) = (tmp_path / "calm").iterdir()
    assert weights(calm) == weights(made)
    newest = [max((place / "steps").glob("[0-9]*")) for place in (calm, made)]
    states = [(place / "state.json").read_text() for place in newest]
    assert states[0] == states[1]
    steps = [[line["step"] for line in json.loads((n / "log.json").read_text())] for n in newest]
    assert steps[0] == steps[1] == list(range(1, 13))


HOLD, NO = "Please hold the line.", "Happy."
THINGS = "weather shop order delivery price parcel refund address lamp chair table candle mirror shelf basket clock".split()


def texts(things: Sequence[str], answers: Sequence[str], place: Path) -> None:
    """Recorded conversations without token ids, and what was thought of them."""
    with TraceStore(place) as opened:
        for thing in things:
            for answer in answers:
                question = {"role": "user", "content": f"Tell me about the {thing}."}
                tokenized = {"role": "assistant", "content": answer}
                call = ModelCall(
                    response_id=f"{thing}/{answer}", messages=(question,), answer=tokenized
                )
                opened.append(
                    Trace(
                        messages=(question, tokenized), model_calls=(call,),
                        feedback=(Feedback(key="csat", value=5.0 if answer == HOLD else 1.0),),
                    )
                ).result(10)  # fmt: skip


def likelihood(place: Path, adapter: Path | None, answer: str) -> float:
    """Mean log-probability of an answer to the store's requests."""
    model = load_model(str(SEED_POLICY), adapters={"default": adapter})
    renderer = renderer_of(SEED_POLICY)
    total, count = 0.0, 0
    with TraceStore(place, create=False) as opened:
        for trace in opened.traces():
            if trace.agent_text != answer:
                continue
            (call,) = calls(renderer, trace)
            assert renderer.tokenizer.decode(call.answer) == f"{answer}<|im_end|>"
            row = Row(prompt=call.prompt, sampled=call.answer, logprobs=(), node="", version="")
            total += float(plain_logprobs(model, row).detach().sum())
            count += 1
    return total / count


def test_text_that_was_answered_once_is_imitated_and_the_run_says_why(tmp_path: Path) -> None:
    texts(THINGS[:12], [HOLD], tmp_path / "train.db")
    texts(THINGS[12:], [HOLD], tmp_path / "unseen.db")
    summary = learn(tmp_path / "train.db", tmp_path / "run", reward="feedback:csat:1:5", epochs=6)
    assert summary["method"] == "sft"
    assert "none of 12 traces has token ids and log-probabilities" in summary["why"]
    before = likelihood(tmp_path / "unseen.db", None, HOLD)
    after = likelihood(tmp_path / "unseen.db", tmp_path / "run" / "adapter", HOLD)
    assert after > before + 1


def test_text_that_was_answered_better_and_worse_is_preferred(tmp_path: Path) -> None:
    texts(THINGS[:12], [HOLD, NO], tmp_path / "train.db")
    texts(THINGS[12:], [HOLD, NO], tmp_path / "unseen.db")
    summary = learn(tmp_path / "train.db", tmp_path / "run", reward="feedback:csat:1:5", epochs=6)
    assert summary["method"] == "dpo"
    assert "preferred to what answers it worse" in summary["why"]

    def margin(adapter: Path | None) -> float:
        good, bad = (likelihood(tmp_path / "unseen.db", adapter, answer) for answer in (HOLD, NO))
        return good - bad

    assert margin(tmp_path / "run" / "adapter") > margin(None) + 1


def test_text_of_which_none_is_better_is_not_preferred(tmp_path: Path) -> None:
    texts(THINGS[:8], [HOLD, HOLD], tmp_path / "train.db")
    summary = learn(tmp_path / "train.db", tmp_path / "run", reward="feedback:csat:1:5")
    assert summary["method"] == "sft"
    assert "no request was answered better and worse" in summary["why"]


async def test_rows_of_calls_that_go_on_from_each_other_are_one_and_partings_are_found(
    training: list[Scenario],
) -> None:
    renderer = renderer_of(SEED_POLICY)
    scenario = next(s for s in training if s.intent == "refund")
    ways = variants(scenario, random.Random(0))
    good, bad = [
        await play_episode(scenario, Oracle(plan=ways[kind]), Sampling(), texts=True)
        for kind in ("right", "stops half way")
    ]
    tokenized = calls(renderer, good)
    (row,) = rows(tokenized)
    assert sum(label != -100 for label in row["labels"]) == sum(
        len(call.answer) for call in tokenized
    )
    assert row["input_ids"] == [*tokenized[-1].prompt, *tokenized[-1].answer]
    pair = first_difference(renderer, good, bad)
    assert pair is not None
    assert pair[0].prompt == pair[1].prompt
    assert pair[0].answer != pair[1].answer


def test_a_store_without_anything_that_ended_is_refused() -> None:
    with pytest.raises(BadInput, match="found none among 1"):
        OfflineDataset([Trace(status="failed")]).method("auto")


def test_what_was_played_to_measure_is_never_learned_from(store: Path, tmp_path: Path) -> None:
    """Also where its scenarios are a user's, which have no split of their own."""
    with TraceStore(store, create=False) as mine, TraceStore(tmp_path / "measured.db") as other:
        for trace in mine.traces(limit=16):
            assert trace.scenario is not None
            own = trace.scenario.model_copy(update={"split": "user"})
            other.append(trace.model_copy(update={"scenario": own}), phase="after").result(10)
    with pytest.raises(BadInput, match="found none among 0"):
        learn(tmp_path / "measured.db", tmp_path / "run")


def test_what_imitation_does_not_read_is_refused(tmp_path: Path) -> None:
    texts(THINGS[:8], [HOLD], tmp_path / "train.db")
    with pytest.raises(BadInput, match="--algorithm: not used by method sft"):
        learn(tmp_path / "train.db", tmp_path / "run", reward="feedback:csat:1:5", algorithm="gspo")
