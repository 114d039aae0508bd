"""Which architectures the embedded engine and the trainer are exact for, tried on tiny random models: the code of the real ones,
a few thousand weights.

    python -m benchmarks.architectures > docs/architectures.md
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from stateset_agents.errors import BadInput
from stateset_agents.server.engine import attention
from stateset_agents.server.engine.exactness import differences
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.model import Model, load_model
from stateset_agents.trainers.packing.batches import Sample, batches
from stateset_agents.trainers.reading import Reading, logprobs, reading_of
from stateset_agents.trajectory import Row, Trajectory

VOCABULARY = 97
WINDOW = 7
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "head_dim": 8,
}  # fmt: skip
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_routed_experts": 4,
    "shared_expert_intermediate_size": 24, "output_router_logits": True,
}  # fmt: skip
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

ARCHITECTURES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama, tied": ("llama", {"tie_word_embeddings": True}),
    "Mistral, window": ("mistral", {"sliding_window": WINDOW}),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Ministral": ("ministral", {"sliding_window": WINDOW, "layer_types": SLIDING}),
    "Mixtral": ("mixtral", {**EXPERTS, "sliding_window": None}),
    "Qwen2": ("qwen2", {}),
    "Qwen2-MoE": ("qwen2_moe", EXPERTS),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS),
    "Qwen3-Next": ("qwen3_next", {**EXPERTS, "layer_types": ["linear_attention", "linear_attention", "full_attention"]}),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "layer_types": SLIDING}),
    "Gemma 3": ("gemma3_text", {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "layer_types": SLIDING}),
    "Phi": ("phi", {}),
    "Phi-3, window": ("phi3", {"sliding_window": WINDOW}),
    "Phi-MoE": ("phimoe", EXPERTS),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {"sliding_window": WINDOW, "layer_types": SLIDING}),
    "OLMoE": ("olmoe", EXPERTS),
    "Cohere": ("cohere", {}),
    "Cohere 2": ("cohere2", {"sliding_window": WINDOW, "layer_types": SLIDING}),
    "Granite": ("granite", {"logits_scaling": 4.0}),
    "Granite-MoE": ("granitemoe", EXPERTS),
    "GPT-2": ("gpt2", GPT),
    "GPT-J": ("gptj", {**GPT, "rotary_dim": 4}),
    "GPT-Neo": ("gpt_neo", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW, "max_position_embeddings": 256}),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-OSS": ("gpt_oss", {**EXPERTS, "sliding_window": WINDOW, "layer_types": SLIDING}),
    "OPT": ("opt", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 256}),
    "BLOOM": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "Falcon": ("falcon", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "MPT": ("mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "Starcoder2": ("starcoder2", {}),
    "StableLM": ("stablelm", {}),
    "SmolLM3": ("smollm3", {}),
    "GLM": ("glm", {}),
    "GLM-4": ("glm4", {}),
    "Llama 4": ("llama4_text", {**EXPERTS, "attention_chunk_size": 8, "intermediate_size_mlp": 48}),
    "DeepSeek-V3": ("deepseek_v3", {**EXPERTS, "n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4, "head_dim": 4, "first_k_dense_replace": 1}),
    "Nemotron": ("nemotron", {}),
    "Helium": ("helium", {}),
    "EXAONE 4": ("exaone4", {"sliding_window": WINDOW, "layer_types": SLIDING}),
    "ERNIE 4.5": ("ernie4_5", {}),
    "Seed-OSS": ("seed_oss", {}),
    "Arcee": ("arcee", {}),
    "Hunyuan": ("hunyuan_v1_dense", {}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
    "Jamba": ("jamba", {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4}),
    "Mamba": ("mamba", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "RecurrentGemma": ("recurrent_gemma", {"attention_window_size": WINDOW, "lru_width": 32, "block_types": ["recurrent", "attention", "recurrent"]}),
}  # fmt: skip
"""By name: transformers' model type, and what makes it tiny."""


def tiny(name: str, attention: str = "eager", *, seed: int = 0) -> PreTrainedModel:
    """A random model with weights large enough that a wrong mask shows."""
    kind, fields = ARCHITECTURES[name]
    taken = fields if "vocab_size" in fields else {**COMMON, **fields}
    config = CONFIG_MAPPING[kind](**taken)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.float().eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of one architecture."""

    name: str
    engine: float | None
    """The largest difference of a log-probability from the model's own, in nats; None if the engine refuses it."""
    engine_why: str | None
    reading: Reading | None
    """How the trainer reads it; None if it refuses it."""
    gradient: float | None
    """The relative difference of the gradient from that of plain rows in the model's own forward pass."""
    training_why: str | None
    targets: int = 0
    """Linear layers with a LoRA."""


def finding(name: str) -> Finding:
    """Try the engine and the trainer on an architecture, as their commands load it."""
    with tempfile.TemporaryDirectory() as folder:
        tiny(name).save_pretrained(folder)
        engine, engine_why = _engine(folder)
        try:
            reading, gradient, targets = _training(Path(folder))
        except BadInput as error:
            return Finding(
                name=name, engine=engine, engine_why=engine_why, reading=None, gradient=None, training_why=str(error)
            )  # fmt: skip
    return Finding(
        name=name, engine=engine, engine_why=engine_why, reading=reading, gradient=gradient, training_why=reading.why,
        targets=targets,
    )  # fmt: skip


def _engine(folder: str) -> tuple[float | None, str | None]:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention.NAME)
    except (ValueError, KeyError):
        return None, "its attention cannot be replaced"
    worst, why = differences(model.eval())
    return (worst, None) if why is None else (None, why)


def _training(folder: Path) -> tuple[Reading, float, int]:
    """How it is read, how far its gradient is from plain rows', and the layers that are trained."""
    model = load_model(str(folder), TrainConfig(rank=2))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    assert isinstance(model, PeftModel)
    model.save_pretrained(str(folder / "adapter"))
    reading = reading_of(model)
    samples = _samples()
    (batch,) = batches(samples, 4096)
    ours, _ = logprobs(model, batch, temperature=0.7, reading=reading)
    torch.autograd.backward((ours * batch.advantages_BT * batch.mask_BT).sum())
    own = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"), folder / "adapter", is_trainable=True
    ).eval()  # fmt: skip
    total = torch.zeros(())
    for sample in samples:
        for row, worth in zip(sample.trajectory.rows, sample.advantages, strict=True):
            ids = torch.tensor([[*row.prompt, *row.sampled]])
            logits = own(input_ids=ids, use_cache=False).logits[0].float() / 0.7
            every = logits.log_softmax(-1)[len(row.prompt) - 1 : -1]
            total = total + worth * every.gather(1, torch.tensor(row.sampled)[:, None]).sum()
    torch.autograd.backward(total)
    mine, theirs = _gradient(model), _gradient(own)
    targets = sum("lora_B" in name for name, _ in model.named_parameters())
    return reading, float((mine - theirs).norm() / theirs.norm()), targets


def _gradient(model: Model) -> torch.Tensor:
    return torch.cat(
        [p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None]
    )


def _samples() -> list[Sample]:
    """Two episodes of two calls with a common prompt, longer than the windows."""
    generator = torch.Generator().manual_seed(2)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())

    prompt, made = ids(2 * WINDOW), []
    for number, worth in enumerate((1.0, -0.5)):
        first, tool, second = ids(4), ids(3), ids(5)
        rows = tuple(
            Row(
                prompt=given, sampled=sampled, node="n", version="policy", logprobs=(-1.0,) * len(sampled), number=call
            )
            for call, (given, sampled) in enumerate(((prompt, first), ((*prompt, *first, *tool), second)))
        )  # fmt: skip
        made.append(
            Sample(
                trajectory=Trajectory(trace_id=str(number), rows=rows), advantages=(worth, worth)
            )
        )
    return made


def row_of(architecture: Finding) -> str:
    """A row of the table."""
    engine = "refused" if architecture.engine is None else f"{architecture.engine:.0e} nats"
    reads = "refused"
    if architecture.reading is not None:
        reads = "shared prefixes" if architecture.reading.shared else "rows"
        reads += ", its own head" if architecture.reading.own_head else ""
    gradient = "-" if architecture.gradient is None else f"{architecture.gradient:.0e}"
    reasons_given = (
        architecture.engine_why and f"engine: {architecture.engine_why}",
        architecture.training_why and f"trainer: {architecture.training_why}",
    )
    reasons = "; ".join(filter(None, reasons_given))
    return f"| {architecture.name} | {engine} | {reads} | {gradient} | {architecture.targets or '-'} | {reasons} |"


def main() -> None:
    """Print the table."""
    print(INTRODUCTION)
    print(
        "| architecture | embedded engine | trainer reads | gradient apart | LoRA layers | why not more |"
    )
    print("|---|---|---|---|---|---|")
    for name in ARCHITECTURES:
        print(row_of(finding(name)), flush=True)


INTRODUCTION = """# Architectures

Made by `python -m benchmarks.architectures`: a tiny random model of each architecture, with transformers' own code. *Embedded engine*: the
largest difference of a log-probability from the model's own forward pass, for prefills, prefills in parts and decodes side by side, beyond the model's
window. *Gradient apart*: how far the trainer's gradient is from that of each row alone through the model's own logits, relative. The same checks
run on a real model before it is served or trained; what does not pass is refused by name, and vLLM serves it where the embedded engine does not.
"""

if __name__ == "__main__":
    main()
