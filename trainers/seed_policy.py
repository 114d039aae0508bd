"""The seed policy is raised from nothing: first it learns to copy, then to imitate transcripts.

Copying order numbers is what a small model learns last, so it comes first and alone: random tokens
said twice, where nothing but looking back can predict the second time.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from stateset_agents.chat_template import default_chat_template

Message = dict[str, Any]
Progress = Callable[[str, int, int, float], None]
"""Called with the stage, steps done, steps in all, and the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedConfig:
    seed: int = 0
    hidden: int = 192
    layers: int = 4
    vocabulary: int = 1024
    copy_steps: int = 260
    copy_batch: int = 64
    copy_length: int = 24
    steps: int = 1500
    batch: int = 24
    learning_rate: float = 2e-3
    threads: int = 2


def train_tokenizer(conversations: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with digits one by one; `<tool_call>` stays visible text, as Qwen has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    control = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    tokenizer.train_from_iterator(
        conversations,
        BpeTrainer(
            vocab_size=size - 2,
            special_tokens=control,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens(
        [
            AddedToken(mark, special=False, normalized=False)
            for mark in ("<tool_call>", "</tool_call>")
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=default_chat_template(),
        clean_up_tokenization_spaces=False,
    )


def new_model(config: SeedConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(config.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocabulary,
            hidden_size=config.hidden,
            intermediate_size=3 * config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def agent_tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[bool]:
    """True where the agent wrote: after each assistant header, up to and with its end mark."""
    header = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    end, mask, index = tokenizer.eos_token_id, [False] * len(ids), 0
    while index < len(ids):
        if list(ids[index : index + len(header)]) == header:
            index += len(header)
            while index < len(ids):
                mask[index] = True
                index += 1
                if ids[index - 1] == end:
                    break
        else:
            index += 1
    return mask


def copies(config: SeedConfig) -> torch.Tensor:
    """(B, 3T) rows of random tokens, the same again, and something else."""
    shape = (config.copy_batch, config.copy_length)
    said = torch.randint(3, config.vocabulary, shape)
    return torch.cat([said, said, torch.randint(3, config.vocabulary, shape)], 1)


def build(
    conversations: Iterator[Sequence[Message]],
    tools: Sequence[dict[str, Any]],
    out: Path,
    config: SeedConfig,
    progress: Progress,
) -> PreTrainedTokenizerFast:
    """Train the seed policy and write it to `out` as bf16, loadable by transformers and vLLM."""
    torch.set_num_threads(config.threads)
    rng = random.Random(config.seed)
    first = [next(conversations) for _ in range(2000)]
    # The template alone decides the text, so a bare tokenizer renders the corpus of the real one.
    renderer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), chat_template=default_chat_template()
    )
    corpus = [
        str(renderer.apply_chat_template(list(messages), tools=list(tools), tokenize=False))
        for messages in first
    ]
    tokenizer = train_tokenizer(corpus, config.vocabulary)
    model = new_model(config, tokenizer)
    optimiser = torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    total = config.copy_steps + config.steps
    pool: list[tuple[list[int], list[bool]]] = []

    def dialogues() -> tuple[torch.Tensor, torch.Tensor]:
        if len(pool) < config.batch:
            for _ in range(16 * config.batch):
                text = tokenizer.apply_chat_template(
                    list(next(conversations)), tools=list(tools), tokenize=False
                )
                ids = tokenizer.encode(str(text), add_special_tokens=False)
                pool.append((ids, agent_tokens(ids, tokenizer)))
            pool.sort(key=lambda row: len(row[0]))
        start = rng.randrange(0, max(1, len(pool) - config.batch))
        rows = pool[start : start + config.batch]
        del pool[start : start + config.batch]
        width = max(len(ids) for ids, _ in rows)
        inputs = torch.full((len(rows), width), int(tokenizer.pad_token_id))
        labels = torch.full((len(rows), width), -100)
        for number, (ids, mask) in enumerate(rows):
            inputs[number, : len(ids)] = torch.tensor(ids)
            labels[number, : len(ids)] = torch.where(torch.tensor(mask), torch.tensor(ids), -100)
        return inputs, labels

    for step in range(total):
        warm = min(1.0, (step + 1) / 100)
        cool = min(1.0, max(0.03, (total - step) / (0.4 * config.steps + 1)))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * warm * cool
        if step < config.copy_steps:
            inputs = copies(config)
            labels = inputs
        else:
            inputs, labels = dialogues()
        # Padding stands on the right and is never a label, so causal attention needs no mask.
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        stage = "copying" if step < config.copy_steps else "transcripts"
        progress(stage, step + 1, total, loss.item())
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = {**asdict(config), "built": time.strftime("%Y-%m-%d")}
    (out / "seed.json").write_text(json.dumps(card, indent=2) + "\n")
    return tokenizer
