"""The seed policy is trained on generated transcripts; its initial weights can copy and nothing else.

A small model learns to copy order numbers last. So the first two layers start from weights that
look back: heads of layer 0 attend to the tokens just before, heads of layer 1 find the place where the
same tokens stood earlier and repeat what came after (an induction circuit, arXiv 2209.11895). Training
moves these weights like all others; the architecture is a stock Qwen2.
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
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from stateset_agents.policy.chat_template import default_chat_template
from stateset_agents.trainers.packing import tree_attention
from stateset_agents.trainers.packing.tree_attention import Tree
from stateset_agents.trainers.packing.trie import fold

HEAD = 64
ROPE = 1e6

Message = dict[str, Any]
Progress = Callable[[str, int, int, float], None]
"""Called with the stage, steps done, total steps, and the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedConfig:
    seed: int = 0
    hidden: int = 256
    layers: int = 4
    vocabulary: int = 1024
    copy_steps: int = 100
    copy_rows: int = 48
    rehearsal_rows: int = 4
    steps: int = 1700
    batch: int = 12
    learning_rate: float = 1e-3
    threads: int = 2


Row = tuple[list[int], list[bool]]
"""Token ids, and True for each token of the loss."""


def train_tokenizer(conversations: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits and separate spaces, so that a word has the same tokens after a space and after a quote
    and can be copied. `<tool_call>` stays visible text, as in Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(" ", "isolated"),
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


def new_model(config: SeedConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 with heads of 64 and the copying circuit in its first two layers."""
    torch.manual_seed(config.seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocabulary,
            hidden_size=config.hidden,
            intermediate_size=2 * config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.hidden // HEAD,
            num_key_value_heads=config.hidden // HEAD,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation=tree_attention.NAME,
        )
    )
    teach_copying(model, config.seed)
    return model


@torch.no_grad()
def teach_copying(model: Qwen2ForCausalLM, seed: int) -> None:
    """Set embeddings and the attention of layers 0 and 1 so that the model repeats what it has seen.

    Head h of layer 0 attends to the token h before (its query bias is its key bias, turned by h
    positions of RoPE) and writes that token into a subspace of its own. Each head of layer 1 compares
    three tokens here with the three before each earlier place, in random projections that RoPE hardly
    turns, and writes the token found there in the direction of its embedding.
    """
    heads, hidden, half = model.config.num_attention_heads, model.config.hidden_size, HEAD // 2
    if heads != 4:
        raise ValueError(
            f"Expected four heads, for the token itself and three before; found {heads}."
        )
    dice = torch.Generator().manual_seed(seed)

    def orthonormal(rows: int, columns: int) -> torch.Tensor:
        """(rows, columns), rows <= columns, with orthonormal rows."""
        tall: torch.Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=dice))[0]
        return tall.T

    model.model.embed_tokens.weight.normal_(std=0.1, generator=dice)
    read = orthonormal(HEAD, hidden)
    places = orthonormal(hidden, hidden).view(heads, HEAD, hidden)
    back, find = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    for layer in (back, find):
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
            projection.bias.zero_()
    strength = (5.0 * HEAD**0.5) ** 0.5
    for head in range(heads):
        rows = slice(head * HEAD, (head + 1) * HEAD)
        for pair in range(8):  # the pairs that RoPE turns fast enough to tell neighbours apart
            turned = torch.tensor(-head * ROPE ** (-pair / half))
            back.k_proj.bias[rows.start + pair] = strength
            back.q_proj.bias[rows.start + pair] = strength * turned.cos()
            back.q_proj.bias[rows.start + pair + half] = strength * turned.sin()
        back.v_proj.weight[rows] = read
        back.o_proj.weight[:, rows] = 0.4 * places[head].T
        query, key = torch.zeros(HEAD, hidden), torch.zeros(HEAD, hidden)
        for offset in range(3):
            look = orthonormal(12, HEAD)
            slow = [14 + 6 * offset + k for k in range(6)]  # pairs that RoPE hardly turns
            slow += [pair + half for pair in slow]
            query[slow] = 2.5 * look @ places[offset]
            key[slow] = 2.5 * look @ places[offset + 1]
        find.q_proj.weight[rows], find.k_proj.weight[rows] = query, key
        find.v_proj.weight[rows] = places[0]
        find.o_proj.weight[:, rows] = 0.5 * read.T


def agent_tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[bool]:
    """True for the agent's tokens: after each assistant header, up to and including its end mark."""
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


def copies(rng: random.Random, config: SeedConfig, count: int) -> list[Row]:
    """Rows in which a string of random tokens is repeated after something else, at any distance; the loss is on the repetition.
    Half use a small alphabet, like numbers, where one token does not determine the next."""
    rows = []
    for _ in range(count):
        letters = list(range(3, config.vocabulary))

        def noise(rng: random.Random = rng, letters: list[int] = letters) -> list[int]:
            return [rng.choice(letters) for _ in range(rng.randint(0, 50))]

        string = rng.sample(letters, 12) if rng.random() < 0.5 else letters
        string_said = [rng.choice(string) for _ in range(rng.randint(6, 16))]
        before = [*noise(), *string_said, *noise()]
        is_learned = [False] * (len(before) + 3) + [True] * (len(string_said) - 3)
        rows.append(([*before, *string_said], is_learned))
    return rows


def loss_over_trie(model: Qwen2ForCausalLM, rows: Sequence[Row]) -> torch.Tensor:
    """Mean loss over the marked tokens; common prefixes are computed once."""
    trie = fold([ids for ids, _ in rows])
    nodes, targets = [], []
    for number, (ids, mask) in enumerate(rows):
        path = trie.nodes(number)
        for place in range(1, len(ids)):
            if mask[place]:
                nodes.append(path[place - 1])
                targets.append(ids[place])
    logits = model(
        input_ids=torch.tensor([trie.ids]),
        position_ids=torch.tensor([trie.depth]),
        use_cache=False,
        logits_to_keep=torch.tensor(nodes),
        tree=Tree(trie.segments, len(trie.ids)),
    ).logits[0]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(targets))


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

    def transcript() -> Row:
        text = tokenizer.apply_chat_template(
            list(next(conversations)), tools=list(tools), tokenize=False
        )
        ids = tokenizer.encode(str(text), add_special_tokens=False)
        return ids, agent_tokens(ids, tokenizer)

    for step in range(total):
        warm = min(1.0, (step + 1) / 100)
        cool = min(1.0, max(0.03, (total - step) / (0.4 * config.steps + 1)))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * warm * cool
        if step < config.copy_steps:
            stage, rows = "copying", copies(rng, config, config.copy_rows)
        else:
            stage = "transcripts"
            # Without rehearsal, tokens that transcripts seldom use forget how to be repeated.
            rows = [transcript() for _ in range(config.batch)]
            rows += copies(rng, config, config.rehearsal_rows)
        loss = loss_over_trie(model, rows)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        progress(stage, step + 1, total, loss.item())
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = {**asdict(config), "built": time.strftime("%Y-%m-%d")}
    (out / "seed.json").write_text(json.dumps(card, indent=2) + "\n")
    return tokenizer
