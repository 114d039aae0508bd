"""One renderer for acting and imitating, on the chat templates of real models, which TRL's package carries."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer

from stateset_agents.errors import BadInput
from stateset_agents.policy.rendering import (
    SENTINEL,
    SENTINEL_TOOL,
    Renderer,
    Unrenderable,
    call_of,
)
from stateset_agents.policy.tool_readers import HERMES, MISTRAL, readers
from stateset_agents.policy.weight_files import SEED_POLICY

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
READ = {
    "cohere": "words", "cohere2": "words", "deepseek_r1_distill": "words", "deepseekv3": "words", "gemma": "words", "gemma3": "words",
    "gemma4": "gemma4", "glm4moe": "glm4moe", "gptoss": "gptoss", "lfm2": "words", "lfm2_v2": "lfm2_2_5", "lfm2_2_5": "lfm2_2_5",
    "llama3": "words", "llama3_1": "llama3", "llama3_2": "llama3", "nemotron_3_nano": "qwen3_5", "phi3": "words", "phi3_5": "words",
    "qwen2_5": "hermes", "qwen3": "hermes", "qwen3_5_think": "qwen3_5", "qwen3_8": "qwen3_5", "qwen3_instruct_2507": "hermes",
    "qwen3_vl": "hermes",
}  # fmt: skip
"""By template: who reads its calls; `words`: it leaves something out, and tools are told in words."""
ONE_CALL = ("gptoss", "llama3_1", "llama3_2")
"""Templates that write one call at a time."""
MISTRALS = (
    "{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif %}{%- for m in messages %}{%- if m.role == 'tool' %}"
    "[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{%- elif m.role == 'assistant' %}{{ m.content }}{%- if m.tool_calls %}[TOOL_CALLS][{%- for c in m.tool_calls %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}{{ ', ' if not loop.last }}{%- endfor %}]{%- endif %}{{ eos_token }}"
    "{%- else %}[INST]{{ m.content }}[/INST]{%- endif %}{%- endfor %}"
)
"""In the form of Mistral's."""
SPECIAL = re.compile(
    r"<[|\uff5c][^<>\s'\"]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>|\[/?[A-Z_]{4,}\]"
)
ENDS = re.compile(r"end|eot|return|call\||user|observation|EOS|END|turn\|>")
QUESTION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Please look it up."},
]


def renderer(template: str) -> Renderer:
    """With the seed policy's vocabulary and the template's special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    tokenizer.bos_token = "<s>"
    special = sorted(set(SPECIAL.findall(template)))
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    ends = [tokenizer.convert_tokens_to_ids(text) for text in special if ENDS.search(text)]
    return Renderer(tokenizer, stops=ends)


def real(name: str) -> Renderer:
    return renderer((TEMPLATES / f"{name}.jinja").read_text())


def look_up(**arguments: Any) -> dict[str, Any]:
    return call_of("look_up", json.dumps(arguments, ensure_ascii=False))


@pytest.mark.parametrize("name", READ)
def test_what_a_model_is_taught_to_say_is_what_is_read_of_it(name: str) -> None:
    made = real(name)
    assert ("words" if made.in_words else made.reader.name) == READ[name]
    for content, calls in (
        ("It is shipped.", []),
        ("", [look_up(**SENTINEL)]),
        ("", [look_up(id="75001", count=2), look_up(id="W2", count=1)]),
    ):
        if len(calls) > 1 and name in ONE_CALL:
            continue
        answer = {"role": "assistant", "content": content, "tool_calls": calls}
        prompt, target = made.answer(QUESTION, [SENTINEL_TOOL], answer)
        assert prompt == made.prompt(QUESTION, [SENTINEL_TOOL])
        assert target[-1] in made.stops
        assert not made.stops.intersection(target[:-1])
        back = made.read(target, [SENTINEL_TOOL], prompt)
        assert [json.loads(c["function"]["arguments"]) for c in back.calls] == [
            json.loads(c["function"]["arguments"]) for c in calls
        ]
        assert (back.content or "").strip() == content


@pytest.mark.parametrize("name", READ)
def test_nothing_that_was_said_is_missing_in_a_prompt(name: str) -> None:
    made = real(name)
    call = look_up(id="planted-argument")
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "planted-rule"},
        {"role": "user", "content": "planted-question"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "name": "look_up",
            "content": "planted-answer",
        },
        {"role": "assistant", "content": "planted-reply"},
        {"role": "user", "content": "planted-thanks"},
    ]
    text = made.tokenizer.decode(made.prompt(messages, [SENTINEL_TOOL]))
    planted = ("rule", "question", "argument", "answer", "reply", "thanks")
    assert [part for part in planted if f"planted-{part}" not in text] == []
    assert "look_up" in text


def test_mistrals_calls_are_read() -> None:
    made = renderer(MISTRALS)
    assert made.reader is MISTRAL
    v11 = '[TOOL_CALLS]look_up[ARGS]{"id": "a"}[TOOL_CALLS]pay[CALL_ID]x1[ARGS]{"to": {"b": 1}}'
    _, calls, _ = MISTRAL.read(made.tokenizer, v11, None, "")
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in calls] == [
        ("look_up", '{"id": "a"}'), ("pay", '{"to": {"b": 1}}'),
    ]  # fmt: skip


def test_a_call_that_is_a_special_token_is_read_and_no_other_special_token_is_shown() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<tool_call>", "</tool_call>", "<|noise|>"]}
    )
    made = Renderer(tokenizer)
    ids = tokenizer.encode(
        '<|noise|>Wait.<tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>'
    )
    answer = made.read(ids)
    assert answer.content == "Wait."
    assert [c["function"]["name"] for c in answer.calls] == ["f"]


def test_thoughts_are_told_apart() -> None:
    made = real("qwen3")
    ids = made.tokenizer.encode("<think>\nhm\n</think>\n\nIt is shipped.<|im_end|>")
    answer = made.read(ids)
    assert (answer.content, answer.reasoning) == ("It is shipped.", "hm")


@pytest.mark.parametrize("name", ["idefics3", "llava_next", "smolvlm"])
def test_templates_for_images_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="leaves out"):
        real(name)


def test_a_form_that_nobody_reads_is_refused_by_name() -> None:
    quotes = (TEMPLATES / "qwen2_5.jinja").read_text().replace("<tool_call>", "<odd>")
    with pytest.raises(BadInput, match="no reader reads"):
        _ = renderer(quotes).reader


def test_what_cannot_be_read_back_is_not_taught() -> None:
    made = real("llama3_1")
    two = {"role": "assistant", "content": "", "tool_calls": [look_up(id="a"), look_up(id="b")]}
    with pytest.raises(Unrenderable, match="single tool"):
        made.answer(QUESTION, [SENTINEL_TOOL], two)
    twice = (
        (TEMPLATES / "qwen2_5.jinja")
        .read_text()
        .replace("tool_call.arguments | tojson", "tool_call.arguments | tojson | tojson")
    )
    with pytest.raises(BadInput):
        _ = renderer(twice).reader


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    tokenizer.eos_token = None
    with pytest.raises(BadInput, match="ends an answer"):
        Renderer(tokenizer)


def test_readers_take_what_is_no_call_as_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    for reader in readers():
        for text in (
            "hi",
            "<tool_call>{bad",
            "<tool_call>look_up\n<arg_key>id</arg_key>\n<arg_value>W",
            "[TOOL_CALLS]nothing",
            '{"name": "x"',
            "a < b",
        ):
            content, calls, _ = reader.read(tokenizer, text, None, "")
            assert calls == []
            assert content == text or reader not in (HERMES, MISTRAL)
