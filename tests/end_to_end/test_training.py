"""The whole loop on the real parts, small: it runs, it is exact, and it survives being killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stateset_agents.errors import BadInput, RunBroken
from stateset_agents.evaluation import paired_gain, wilson
from stateset_agents.jobs import config as job_config
from stateset_agents.jobs import offline
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.traces.lineage import problems
from stateset_agents.traces.store import TraceStore
from stateset_agents.trajectory import trajectory

TINY = [
    "--steps",
    "4",
    "--groups",
    "2",
    "--group-size",
    "4",
    "--held-out",
    "5",
    "--concurrency",
    "8",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stateset_agents", "train", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "140"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run, made by the command line."""
    out = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        command(*TINY, "--out", str(out)), env=environment(), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = out.iterdir()
    (folder / "terminal.txt").write_text(done.stdout)
    return folder


def test_a_run_leaves_all_it_promises(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for key in (
        "seed", "steps", "group_size", "episodes_trained", "held_out", "success_before", "success_after",
        "ci95_before", "ci95_after", "gain", "gain_ci95", "greedy_before", "greedy_after",
        "success_by_intent", "mean_reward_before", "mean_reward_after", "violations_before",
        "violations_after", "peak_rss", "seconds_total", "seconds_rollout", "seconds_train", "tokens_sampled",
        "tokens_trained", "positions_forwarded", "policy_versions", "torch_threads",
    ):  # fmt: skip
        assert key in summary, key
    assert summary["episodes_trained"] == 32
    assert 0 < summary["positions_forwarded"] < summary["positions_in_rows"]
    page = (run / "report.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    assert json.loads((run / "config.json").read_text())["steps"] == 4
    terminal = (run / "terminal.txt").read_text()
    assert "before and after" in terminal
    assert "gain" in terminal


def test_every_trained_token_was_sampled_by_the_version_before_the_step(run: Path) -> None:
    with TraceStore(run / "traces.db", create=False) as store:
        rows = {str(row["id"]): row for row in store.newest(phase="train", limit=100)}
        assert len(rows) == 32
        for trace in store.traces(phase="train"):
            step = int(str(rows[trace.id]["step"]))
            wanted = "policy" if step == 1 else f"{run.name}-v{step - 1}"
            assert {call.version for call in trace.model_calls} == {wanted}
            assert trajectory(trace).tokens == trace.tokens_sampled > 0


def test_the_importance_ratio_starts_each_step_at_one(run: Path) -> None:
    newest = max((run / "steps").glob("[0-9]*"))
    for line in json.loads((newest / "log.json").read_text()):
        assert line["ratio"] == pytest.approx(1.0, abs=0.01)


def test_the_adapter_loads_with_plain_peft_and_says_what_the_engine_said(run: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(SEED_POLICY, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(run / "adapter"))
    with TraceStore(run / "traces.db", create=False) as store:
        trace = next(store.traces(phase="after"))
    for call in trace.model_calls:
        with torch.no_grad():
            logits = model(torch.tensor([[*call.prompt_ids, *call.sampled_ids]])).logits[0]
        every = torch.log_softmax(logits, -1)[len(call.prompt_ids) - 1 : -1]
        wanted = every.gather(1, torch.tensor(call.sampled_ids)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(call.logprobs), wanted, rtol=0, atol=1e-4)


def log_of(folder: Path) -> list[dict[str, Any]]:
    newest = max((folder / "steps").glob("[0-9]*"))
    lines: list[dict[str, Any]] = json.loads((newest / "log.json").read_text())
    return lines


def kill_and_resume(out: Path, arguments: list[str], kills: int, rng: random.Random) -> Path:
    """Kill the job at random moments of its steps, resuming after each, and let the last one finish."""
    arguments = [*arguments, "--out", str(out)]
    for number in range(kills):
        process = subprocess.Popen(
            command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        # Once before the first step is whole, then within a later one each time.
        while number and not list(out.glob(f"*/steps/{number:06d}")) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 4) if number else rng.uniform(4, 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        made = sorted(out.glob("*")) if out.exists() else []
        if made and (made[0] / "config.json").is_file():
            arguments = ["--resume", str(made[0])]
    done = subprocess.run(
        command(*arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return min(p for p in out.iterdir() if (p / "summary.json").is_file())


def test_a_killed_run_skips_and_repeats_no_scenario(run: Path, tmp_path: Path) -> None:
    killed = kill_and_resume(tmp_path / "runs", TINY, 3, random.Random(0))
    assert [line["scenarios"] for line in log_of(killed)] == [
        line["scenarios"] for line in log_of(run)
    ]
    with TraceStore(killed / "traces.db", create=False) as store:
        assert store.count("train") == 32
    assert not list((killed / "steps").glob(".writing-*"))


async def learn_from(store: Path, folder: Path, **options: Any) -> dict[str, Any]:
    folder.mkdir()
    config = job_config.check_config({"groups": 2, "from_traces": str(store), "log": (), **options})
    return await offline.offline_job(config, folder, lambda line: None)


async def test_a_store_alone_trains_and_says_what_it_learned_from(
    run: Path, tmp_path: Path
) -> None:
    place = tmp_path / "traces.db"
    shutil.copy(run / "traces.db", place)
    with TraceStore(place) as store:
        before = store.certified()
    summary = await learn_from(place, tmp_path / "again")
    assert summary["groups"] == 8
    with TraceStore(place) as store:
        rows = list(
            store.read(
                "SELECT DISTINCT run, phase FROM trained JOIN runs ON runs.id = run WHERE adapter LIKE 'again-%'"
            )
        )
        assert store.certified() > before
        assert rows
        assert {phase for _, phase in rows} == {"train"}  # what measures is not learned from
        assert list(problems(store)) == []


async def test_traces_of_another_policy_are_refused_though_their_ratios_average_to_one(
    run: Path, tmp_path: Path
) -> None:
    rng = random.Random(0)
    with TraceStore(run / "traces.db") as mine, TraceStore(tmp_path / "other.db") as other:
        for trace in mine.traces(phase="train"):
            calls = tuple(
                call.model_copy(
                    update={"logprobs": tuple(p + rng.choice((1.3, -0.55)) for p in call.logprobs)}
                )
                for call in trace.model_calls
            )
            other.append(trace.model_copy(update={"model_calls": calls}))
    with pytest.raises(RunBroken, match="nats a token"):
        await learn_from(tmp_path / "other.db", tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"temperature": None}, "none named"),
        ({"temperature": 0.0}, r"found 0\.0"),
        ({"sampling": {"top_p": 0.9}}, "0 sampled freely"),
        ({"logprobs": ()}, "0 of those exact"),
    ],
)
async def test_what_was_sampled_otherwise_is_not_trained_on(
    run: Path, tmp_path: Path, change: dict[str, Any], error: str
) -> None:
    with TraceStore(run / "traces.db") as mine, TraceStore(tmp_path / "other.db") as other:
        for trace in mine.traces(phase="train"):
            calls = tuple(call.model_copy(update=change) for call in trace.model_calls)
            other.append(trace.model_copy(update={"model_calls": calls}))
    with pytest.raises(BadInput, match=error):
        await learn_from(tmp_path / "other.db", tmp_path / "run", method="rl")


async def test_runs_that_broke_off_or_began_otherwise_are_in_no_group(
    run: Path, tmp_path: Path
) -> None:
    with TraceStore(run / "traces.db") as mine, TraceStore(tmp_path / "other.db") as other:
        first, second, third = list(mine.traces(phase="train"))[:3]
        assert first.scenario == second.scenario == third.scenario
        other.append(first)
        other.append(second.model_copy(update={"status": "waiting"}))
        calls = third.model_calls
        later = calls[0].model_copy(update={"prompt_ids": (*calls[0].prompt_ids, 5)})
        other.append(third.model_copy(update={"model_calls": (later, *calls[1:])}))
    with pytest.raises(BadInput, match=r"2 of them finished and not evaluations.*0 groups"):
        await learn_from(tmp_path / "other.db", tmp_path / "run")


def test_intervals() -> None:
    low, high = wilson(50, 100)
    assert [low, high] == pytest.approx([0.4038, 0.5962], abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)
    gain, (low, high) = paired_gain([0.0] * 50 + [1.0] * 50, [1.0] * 100)
    assert gain == 0.5
    assert 0.35 < low < 0.5 < high < 0.65
    with pytest.raises(ValueError, match="pairs"):
        paired_gain([1.0], [])


def test_overlapped_steps_are_played_by_the_version_that_was_planned(
    run: Path, tmp_path: Path
) -> None:
    """Step n by version n - 2, also across a kill; and step n + 1 began while step n was not yet committed."""
    late = kill_and_resume(tmp_path / "runs", [*TINY, "--staleness", "1"], 2, random.Random(1))
    log = log_of(late)
    assert [line["scenarios"] for line in log] == [line["scenarios"] for line in log_of(run)]
    with TraceStore(late / "traces.db", create=False) as store:
        rows = {str(row["id"]): row for row in store.newest(phase="train", limit=100)}
        assert len(rows) == 32
        began: dict[int, float] = {}
        for trace in store.traces(phase="train"):
            step = int(str(rows[trace.id]["step"]))
            wanted = "policy" if step <= 2 else f"{late.name}-v{step - 2}"
            assert {call.version for call in trace.model_calls} == {wanted}
            began[step] = min(began.get(step, trace.started), trace.started)
    for step in (3, 4):
        committed = (late / "steps" / f"{step - 1:06d}" / "log.json").stat().st_mtime
        if (late / "steps" / f"{step - 1:06d}").exists() and began[step] < committed:
            break
    else:
        raise AssertionError("no step was played while another one was learned")
    assert all(line["gap"] < 0.5 for line in log)
    assert [line["step"] for line in log] == [1, 2, 3, 4]


async def test_an_auto_trainer_ends_on_a_plateau(tmp_path: Path) -> None:
    """A reward that nothing can raise: noise of the episode's own tokens."""
    from stateset_agents import AgentConfig, AutoTrainer, ConversationEnvironment, MultiTurnAgent
    from stateset_agents.reward import EachTrace, Score
    from stateset_agents.trace import Trace

    class Noise(EachTrace):
        name = "noise"

        def score(self, trace: Trace) -> Score:
            tokens = [token for call in trace.calls for token in call.sampled_ids]
            return Score(value=random.Random(str(tokens)).random())

    async with MultiTurnAgent(AgentConfig(max_new_tokens=12)) as agent:
        env = ConversationEnvironment(
            scenarios=[{"id": f"s{n}", "user_responses": ["Where is my order?"]} for n in range(4)],
            max_turns=1,
        )
        trainer = AutoTrainer(
            num_episodes=800, early_stopping=True, patience=2, output_dir=tmp_path
        )
        await trainer.train(agent, env, Noise())
    assert 5 <= len(trainer.history) < 20
    assert "ended on a plateau: the last 2 steps gained" in trainer.history[-1].changes[-1]


def test_what_was_stored_of_a_step_that_was_not_committed_is_played_again(
    run: Path, tmp_path: Path
) -> None:
    """A kill between storing a step's traces and committing it, and before its line was written."""
    torn = tmp_path / run.name
    shutil.copytree(run, torn, symlinks=True)
    for name in ("after.json", "greedy_after.json", "summary.json", "adapter"):
        (torn / name).unlink()
    shutil.rmtree(torn / "steps" / "000004")
    lines = (torn / "log.jsonl").read_text().splitlines()
    (torn / "log.jsonl").write_text("".join(line + "\n" for line in lines[:2]))
    done = subprocess.run(
        command("--resume", str(torn)), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with TraceStore(torn / "traces.db", create=False) as store:
        assert store.count("train") == 32
        assert list(problems(store)) == []
    again = [json.loads(line) for line in (torn / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in again] == [1, 2, 3, 4]
    assert [line["scenarios"] for line in again] == [line["scenarios"] for line in log_of(run)]


def test_a_warm_start_is_imitated_first_served_and_trained_on_from(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--warm-start", "oracle", "--warm-traces", "16", "--steps", "1", "--groups", "2", "--group-size", "4",
                "--held-out", "4", "--log", "none", "--out", str(tmp_path)),
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = tmp_path.iterdir()
    warm, trained = (
        load_file(made / place / "adapter_model.safetensors")
        for place in ("warm/adapter-trained", "adapter")
    )
    assert any(bool(tensor.any()) for name, tensor in warm.items() if "lora_B" in name)
    gaps = [float((warm[name] - trained[name]).abs().max()) for name in warm]
    assert 0 < max(gaps) <= 1.5e-3  # one step of Adam from there
    with TraceStore(made / "traces.db", create=False) as store:
        versions = {c.version for t in store.traces(phase="train") for c in t.model_calls}
    assert versions == {f"{made.name}-v0"}
