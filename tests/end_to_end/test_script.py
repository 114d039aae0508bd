"""`scripts/train_trl_grpo.sh`: every variable does what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stateset_agents.jobs.config import load_config
from stateset_agents.traces.store import TraceStore
from tests import ROOT

SMALL = {"NUM_EPISODES": "32", "BATCH_SIZE": "4", "NUM_GENERATIONS": "4", "HELD_OUT": "4"}


def script(out: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    kept = {"PATH", "HOME", "LANG", "TMPDIR", "HF_HUB_OFFLINE"}
    environment = {name: value for name, value in os.environ.items() if name in kept}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "train_trl_grpo.sh"), *arguments], capture_output=True, text=True, check=False,
        env={**environment, "PYTHON": sys.executable, "OUTPUT_DIR": str(out), "WANDB_MODE": "offline",
             "WANDB_DIR": str(out), **variables}, timeout=400,
    )  # fmt: skip


def test_every_variable_shows_in_what_the_run_leaves(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"prompt": f"Where is my order W{n}?"}) + "\n" for n in range(1000, 1008)
        )
    )
    out = tmp_path / "runs"
    done = script(
        out, "--reward", "tests.two_nodes:brief", **SMALL, MODEL_NAME="seed", DATA_PATH=str(prompts), GRADIENT_ACCUMULATION_STEPS="2", LORA_R="4", LORA_ALPHA="12",
        LORA_DROPOUT="0.05", USE_BF16="true", GRADIENT_CHECKPOINTING="true", WANDB_PROJECT="my-shop", SAVE_STEPS="2",
        EVAL_STEPS="2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (path for path in out.iterdir() if (path / "config.json").is_file())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 4  # 32 episodes, 4 x 2 a step
    assert {line["episodes"] for line in lines} == {8}
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (4, 12, 0.05)
    assert adapter["base_model_name_or_path"].endswith("seed_policy")
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {
        torch.float32
    }  # whatever is computed in
    config = load_config(run)
    assert (config.precision, config.gradient_checkpointing) == ("bf16", True)
    assert (config.groups, config.group_size, config.episodes_per_batch) == (2, 4, 4)
    assert (run / "steps" / "000002").is_dir()
    assert [n for n, line in enumerate(lines, 1) if line["held_out"]] == [2, 4]
    offline = list((out / "wandb").glob("offline-run-*"))
    assert offline
    assert any(
        "my-shop" in path.read_text(errors="replace") for path in offline[0].rglob("*.wandb")
    )
    with TraceStore(run / "traces.db", create=False) as store:
        openings = {trace.messages[0]["content"] for trace in store.traces(phase="train")}
    assert openings <= {f"Where is my order W{n}?" for n in range(1000, 1008)}


def test_without_lora_all_weights_move_and_half_precision_learns_too(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    done = script(out, **SMALL, QUICK_MODE="true", USE_LORA="false", USE_FP16="true")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (path for path in out.iterdir() if (path / "config.json").is_file())
    assert not (run / "adapter" / "adapter_config.json").exists()
    assert (run / "adapter" / "model.safetensors").is_file()
    assert load_config(run).precision == "fp16"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert any(line["grad_norm"] > 0 for line in lines)
    assert load_config(run).held_out == 4  # what is said goes before what is quick


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"USE_LORA": "yes"}, "USE_LORA: expected true or false"),
        ({"LORA_R": "many"}, "LORA_R: expected a whole number"),
        ({"USE_BF16": "true", "USE_FP16": "true"}, "expected one of them"),
        ({"BATCH_SIZE": "4", "NUM_GENERATIONS": "8"}, "expected at least NUM_GENERATIONS"),
        ({"NUM_GENERATIONS": "0"}, "NUM_GENERATIONS: expected at least 2"),
        ({"NUM_EPISODES": "8"}, "NUM_EPISODES: expected at least one step"),
        ({"DATA_PATH": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, variables: dict[str, str], error: str) -> None:
    done = script(tmp_path / "runs", **variables)
    assert done.returncode == 2
    assert error in done.stderr
    assert not (tmp_path / "runs").exists()


def test_quick_mode_says_what_it_will_do(tmp_path: Path) -> None:
    done = script(tmp_path / "runs", "--dry-run", QUICK_MODE="true")
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert (config["steps"], config["groups"], config["group_size"], config["held_out"]) == (
        4,
        4,
        8,
        24,
    )
