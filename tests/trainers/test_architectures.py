"""Every architecture: the engine answers as the model itself or refuses it by name, and the trainer's gradient is that of plain rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from benchmarks.architectures import ARCHITECTURES, finding, row_of, tiny
from stateset_agents.errors import BadInput
from stateset_agents.server.engine import attention
from stateset_agents.server.engine.exactness import why_not_exact
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.model import load_model
from stateset_agents.trainers.reading import reading_of

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
SHARED = frozenset({
    "Llama", "Llama, tied", "Mistral", "Mixtral", "Qwen2", "Qwen2-MoE", "Qwen3", "Qwen3-MoE", "Gemma", "Phi", "Phi-MoE", "OLMo", "OLMo 2",
    "OLMoE", "Cohere", "Granite", "Granite-MoE", "GPT-2", "GPT-J", "GPT-NeoX", "OPT", "Starcoder2", "SmolLM3", "GLM", "GLM-4", "Helium",
    "ERNIE 4.5", "Seed-OSS", "Arcee", "Hunyuan",
})  # fmt: skip
REFUSED_BY_THE_ENGINE = frozenset({
    "Qwen3-Next", "GPT-Neo", "BLOOM", "Falcon", "MPT", "StableLM", "Llama 4", "Nemotron", "LFM2", "Jamba", "Mamba", "RecurrentGemma",
})  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning:peft", "ignore::UserWarning:peft", "ignore::FutureWarning"
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_exact_or_refused_by_name(name: str) -> None:
    row = finding(name)
    if name in REFUSED_BY_THE_ENGINE:
        assert row.engine is None
        assert row.engine_why
    else:
        assert row.engine is not None, row.engine_why
        assert row.engine <= 1e-4
    assert row.reading is not None, row.training_why
    assert row.gradient is not None
    assert row.gradient <= 1e-5
    assert row.reading.shared == (name in SHARED), row.training_why
    assert row.reading.shared or row.reading.why
    documented = next(
        line for line in TABLE.read_text().splitlines() if line.startswith(f"| {name} |")
    )
    row_cells = [cell.strip() for cell in row_of(row).split("|")]
    known = [cell.strip() for cell in documented.split("|")]
    assert [row_cells[3], row_cells[5], row_cells[6]] == [known[3], known[5], known[6]]
    assert ("refused" in row_cells[2]) == ("refused" in known[2])


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("Mistral, window", {"sliding_window": None}),
        ("Gemma 3", {"sliding_window": None}),
        ("Gemma 2", {"softcap": None}),
        ("GPT-OSS", {"s_aux": None}),
    ],
)
def test_an_attention_that_leaves_something_out_is_found_out(
    name: str, spoil: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the engine did before: it took what a model asked for, and ignored it."""
    attend: Callable[..., Any] = attention.attend

    def swallowing(*args: Any, **options: Any) -> Any:
        return attend(*args, **{**options, **spoil})

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, swallowing)
    reason = why_not_exact(tiny(name, attention.NAME))
    assert reason is not None
    assert "nats" in reason or "without saying so" in reason


def test_what_an_attention_asks_for_and_nobody_built_is_refused() -> None:
    ones = torch.ones(1, 2, 3, 4)
    batch = attention.Batch(slots=attention.Slots(1, 4), prefill=((0, 0, 3),), decode=())
    with pytest.raises(attention.UnknownAttention, match="position_bias"):
        attention.attend(torch.nn.Module(), ones, ones, ones, None, batch=batch, position_bias=ones)


def test_a_dropout_that_is_a_plain_number_is_turned_off(tmp_path: Path) -> None:
    for name in ("OPT", "Starcoder2"):
        model = tiny(name)
        for field in ("dropout", "attention_dropout", "residual_dropout", "embedding_dropout"):
            if hasattr(model.config, field):
                setattr(model.config, field, 0.5)
        model.save_pretrained(tmp_path / name)
        trained = load_model(str(tmp_path / name), TrainConfig(rank=2)).train()
        reading_of(trained)
        trained.get_base_model().set_attn_implementation("eager")
        ids = torch.tensor([[5, 1, 4, 2, 3]])
        with torch.no_grad():
            first, second = (trained(input_ids=ids).logits for _ in range(2))
        assert torch.equal(first, second)


def test_a_model_that_reads_the_future_is_refused(tmp_path: Path) -> None:
    tiny("Llama").save_pretrained(tmp_path)
    model = load_model(str(tmp_path), TrainConfig(rank=2))
    layers = model.get_base_model().model.layers
    before = layers[0].forward

    def mixed(states: torch.Tensor, *args: Any, **options: Any) -> Any:
        return before(states + states.mean(1, keepdim=True), *args, **options)

    layers[0].forward = mixed
    with pytest.raises(BadInput, match="those after it"):
        reading_of(model)
