"""Models of other families, tiny and random: they are taught demonstrations and make a step of GRPO, and trainer and engine agree."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from stateset_agents.policy.weight_files import SEED_POLICY

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3": ("qwen3", {}),
    "Llama": ("llama", {}),
    "Mistral, with a window": ("mistral", {"sliding_window": 64}),
    "Gemma 3": ("gemma3_text", {"sliding_window": 64, "query_pre_attn_scalar": 32, "layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip


def model_of(family: str, folder: Path) -> str:
    """A random model of a family with the seed policy's tokenizer."""
    kind, fields = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **{**SHAPE, **fields},
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(SEED_POLICY / "chat_template.jinja", folder)
    return str(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_a_model_of_another_family_is_exact(family: str, tmp_path: Path) -> None:
    check_step(family, "embedded", tmp_path)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma 3"])
def test_and_on_vllm(vllm_is_there: None, family: str, tmp_path: Path) -> None:
    check_step(family, "vllm", tmp_path)


def check_step(family: str, engine: str, tmp_path: Path) -> None:
    """A warm start and a step, by the command line."""
    model = model_of(family, tmp_path / "model")
    done = subprocess.run(
        [
            sys.executable, "-m", "stateset_agents", "train", "--model", model, "--engine", engine, "--warm-start", "oracle",
            "--warm-traces", "16", "--steps", "1", "--groups", "2", "--group-size", "3", "--held-out", "2", "--max-tokens", "24",
            "--max-model-len", "1536", "--reward", "tests.two_nodes:brief", "--concurrency", "6", "--out", str(tmp_path / "runs"),
        ],
        capture_output=True, text=True, timeout=900, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode in (0, 2), done.stdout + done.stderr
    (log,) = (tmp_path / "runs").glob("*/log.jsonl")
    line = json.loads(log.read_text().splitlines()[-1])
    assert line["stepped"], done.stdout + done.stderr
    assert abs(line["ratio"] - 1) <= 1e-3
    assert line["gap"] <= 1e-3
