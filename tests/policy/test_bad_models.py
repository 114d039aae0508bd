"""Models that cannot be a policy are named before a token is sampled, and a GGUF file is read once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from benchmarks.architectures import tiny
from stateset_agents.errors import BadInput
from stateset_agents.policy.gguf import converted
from stateset_agents.policy.rendering import renderer_of
from stateset_agents.policy.weight_files import SEED_POLICY, checked_config, model_path
from stateset_agents.server.engine.models import load_base
from tests.command_line import run


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(SEED_POLICY, folder)
    return folder


def test_an_encoder_is_no_policy(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="found BertForMaskedLM"):
        checked_config(str(tmp_path))
    assert "BertForMaskedLM" in run("evaluate", "--model", str(tmp_path), status=2)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match="found an adapter: give its base"):
        checked_config(str(tmp_path))


def test_a_download_that_was_not_finished(seed: Path) -> None:
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (seed / "model.safetensors").rename(seed / "model-1-of-2.safetensors")
    (seed / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"model-2-of-2.safetensors is missing"):
        checked_config(str(seed))


def test_weights_that_are_cut_off(seed: Path) -> None:
    weights = seed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(BadInput, match="model's weights"):
        load_base(str(seed))


def test_code_of_its_own_is_not_run(seed: Path) -> None:
    config = json.loads((seed / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (seed / "config.json").write_text(json.dumps(config))
    (seed / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(BadInput, match="code of its own"):
        checked_config(str(seed))


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{{ raise_exception('never') }}", "leaves out"), ("{% for %}", "leaves out")],
)
def test_a_template_that_raises(seed: Path, template: str, reason: str) -> None:
    (seed / "chat_template.jinja").write_text(template)
    with pytest.raises(BadInput, match=reason):
        renderer_of(seed)


def test_a_base_model_without_a_template_gets_ours(seed: Path) -> None:
    (seed / "chat_template.jinja").unlink()
    made = renderer_of(seed)
    assert not made.in_words
    assert made.reader.name == "hermes"


def test_a_tokenizer_that_is_missing(tmp_path: Path) -> None:
    tiny("Llama").save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="tokenizer"):
        renderer_of(tmp_path)


def test_ids_beyond_the_tokenizer_are_taken_and_come_back(seed: Path) -> None:
    """A padded vocabulary: the engine samples ids that its tokenizer has no word for, and is sent them again."""
    from fastapi.testclient import TestClient

    from stateset_agents.server.engine.app import build
    from stateset_agents.server.engine.engine import Engine

    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    size = len(tokenizer)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size + 60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=128,
        )
    ).save_pretrained(seed)  # fmt: skip
    model, renderer = load_base(str(seed))
    engine = Engine(model, renderer, "policy", slots=2, length=64)
    with TestClient(build(engine)) as client:
        body = {
            "prompt": [5, size + 7, 6],
            "max_tokens": 3,
            "return_token_ids": True,
            "logprobs": 1,
        }
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        ids = answer.json()["choices"][0]["token_ids"]
        assert client.post("/v1/completions", json={**body, "prompt": [5, *ids]}).status_code == 200
        assert (
            client.post("/v1/completions", json={**body, "prompt": [size + 60]}).status_code == 400
        )


def test_a_token_that_cannot_be_sampled_has_a_log_probability_that_json_can_say(seed: Path) -> None:
    from fastapi.testclient import TestClient

    from stateset_agents.server.engine.app import build
    from stateset_agents.server.engine.engine import Engine

    model, renderer = load_base(str(seed))
    engine = Engine(model, renderer, "policy", slots=2, length=256)
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "max_tokens": 2, "top_k": 1, "logprobs": True, "top_logprobs": 5}
    with TestClient(build(engine)) as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        entry = json.loads(answer.text)["choices"][0]["logprobs"]["content"][0]
        assert min(top["logprob"] for top in entry["top_logprobs"]) == -9999.0
        assert (
            "Infinity"
            not in client.post("/v1/chat/completions", json={**body, "stream": True}).text
        )


def test_a_gguf_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf
    import numpy as np

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "bad.gguf"
    with pytest.raises(BadInput, match="found none"):
        converted(str(file))
    file.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(BadInput, match="GGUF file that transformers can read"):
        converted(str(file))
    small = tmp_path / "small.gguf"
    _write_llama(gguf, np, small)
    place = Path(model_path(str(small)))
    assert checked_config(str(place)).model_type == "llama"
    (place / "mark").touch()
    assert (Path(model_path(str(small))) / "mark").is_file()
    with pytest.raises(BadInput, match="package 'no-such-package-of-ours'"):
        converted("pypi:no-such-package-of-ours")


def _write_llama(gguf: object, np: object, file: Path) -> None:
    """A Llama of one layer as llama.cpp writes it."""
    writer = gguf.GGUFWriter(str(file), "llama")  # type: ignore[attr-defined]
    words = ["w", "0", *(f"w{n}" for n in range(62))]
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * 64)
    writer.add_token_merges(["w 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {
        "token_embd.weight": (64, 32), "output.weight": (64, 32), "output_norm.weight": (32,), "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,), **{f"blk.0.attn_{part}.weight": (32, 32) for part in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{part}.weight": (32, 32) for part in ("gate", "up", "down")},
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, dtype=np.float32))  # type: ignore[attr-defined]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
