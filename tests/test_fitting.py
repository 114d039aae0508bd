"""Settings that fit a model, and models that fit no machine."""

from pathlib import Path

import pytest

from benchmarks.architectures import tiny
from stateset_agents.errors import BadInput
from stateset_agents.jobs import fitting
from stateset_agents.policy.weight_files import SEED_POLICY


def test_the_bundled_policy_keeps_the_defaults() -> None:
    assert fitting.fitting({}, training=True).values == {}


def test_another_model_gets_settings_with_reasons(tmp_path: Path) -> None:
    tiny("Llama").save_pretrained(tmp_path)
    model = str(tmp_path)
    made = fitting.fitting({"model": model}, training=True)
    assert made.values == {"learning_rate": 1e-3, "max_tokens": 256, "max_model_len": 256}
    assert "the model was made for 256" in made.reasons[-1]
    full = fitting.fitting({"model": model, "full": True, "max_tokens": 7}, training=True)
    assert full.values == {"learning_rate": 1e-4, "max_model_len": 256}
    served = fitting.fitting({"model": model, "base_url": "http://x/v1"}, training=False)
    assert served.values == {"max_tokens": 256}


def test_weights_are_counted(tmp_path: Path) -> None:
    model = tiny("Qwen2-MoE")
    model.save_pretrained(tmp_path)
    assert fitting.weights_of(str(tmp_path), model.config) == sum(
        p.numel() for p in model.parameters()
    )
    from transformers import AutoConfig

    seed = AutoConfig.from_pretrained(SEED_POLICY)
    assert 2e6 < fitting.weights_of("a-name-on-the-hub", seed) < 4e6


def test_what_does_not_fit_is_refused_with_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny("Llama").save_pretrained(tmp_path)
    monkeypatch.setattr(fitting, "weights_of", lambda path, config: 70_000_000_000)
    with pytest.raises(
        BadInput, match=r"70.0 billion weights, which take 560 GB .* a server elsewhere"
    ):
        fitting.fitting({"model": str(tmp_path)}, training=True)
    assert (
        fitting.fitting({"model": str(tmp_path), "base_url": "http://x/v1"}, training=True).values[
            "learning_rate"
        ]
        == 1e-4
    )
