"""Personal data is out before anything is stored, and tokens that would tell it with it; other text is left alone."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph

from stateset_agents.errors import BadInput, NotExact
from stateset_agents.policy.chat_model import connect
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.record import record
from stateset_agents.traces.redaction import Redacted, Redactor, new_key, personal, unseal
from stateset_agents.traces.store import TraceStore
from stateset_agents.trajectory import trajectory
from tests.redaction_set import harmless_strings, personal_strings

PERSONAL = [
    ("Write to ann.lee+shop@mail.example.co.uk please", "Write to [email] please"),
    ("My card is 4111 1111 1111 1111.", "My card is [card]."),
    ("5500-0000-0000-0004 was charged", "[card] was charged"),
    ("Call +49 30 901820 tomorrow", "Call [phone] tomorrow"),
    ("Call (212) 736-5000 or 020 7946 0958", "Call [phone] or [phone]"),
    ("IBAN DE89 3704 0044 0532 0130 00 it is", "IBAN [iban] it is"),
    ("I live at 12 Birch Road now", "I live at [address] now"),
    ("Ich wohne in der Lindenstraße 5", "Ich wohne in der [address]"),
    ("J'habite 12 rue de la Paix", "J'habite [address]"),
    ("Vivo en Calle Mayor 8", "Vivo en [address]"),
]
HARMLESS = [
    "Order W20417 costs 1,045.50 and arrives on 3 May.",
    "My zip is 12345, line L1, sku P21, code SUMMER25.",
    "Reference 4111 1111 1111 1112 is no card.",
    "It weighs 12.5 kg, 30 x 20 x 10 cm, 24 months of warranty.",
    "The road is long and the way is clear.",
    "2026-11-23 10:15:00",
    "2026-05-29T07:46:04.012191",
    "10 place mats",
    "5 square meters",
    "pip install foo@1.2.3",
    "192.168.100.200",
    "29.05.2026 07:46:04",
    "1717000000",
]


@pytest.mark.parametrize(("text", "kept"), PERSONAL)
def test_personal_data_is_taken_out(text: str, kept: str) -> None:
    assert Redactor().text(text) == kept


def test_precision_and_recall() -> None:
    """On strings of five languages, logs, JSON, dates and article numbers; `python -m benchmarks.redaction` prints the figures."""
    harmless = list(harmless_strings(seed=1))
    flagged = [text for text in harmless if personal(text)]
    assert len(harmless) >= 2000
    assert len(flagged) <= 0.002 * len(harmless), flagged
    wanted = list(personal_strings(seed=1))
    missed = [
        (part, text)
        for _, part, text in wanted
        if not any(part.strip(".") in hit or hit in part for _, hit in personal(text))
    ]
    assert len(missed) <= 0.03 * len(wanted), missed


def test_a_field_that_is_named_a_phone_is_one() -> None:
    given = {"phone": "612345678", "mobile_no": 612345678, "order": "612345678", "telemetry": "a1"}
    assert Redactor().value(given) == {
        "phone": "[phone]", "mobile_no": "[phone]", "order": "612345678", "telemetry": "a1",
    }  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_is_left_alone(text: str) -> None:
    assert Redactor().text(text) == text


def test_what_shops_customers_say_is_hardly_touched(development: list[Scenario]) -> None:
    """Streets are personal data; nothing else in these conversations is."""
    redactor = Redactor()
    for scenario in development:
        texts = [scenario.customer.opening, *(act.say for act in scenario.plan)]
        for text in texts:
            kept = redactor.text(text)
            assert kept == text or "[address]" in kept


def test_what_is_hidden_in_json_numbers_and_keys_is_found() -> None:
    redactor = Redactor()
    arguments = '{"to": "ann\\u0040example.com", "card": 4111111111111111, "n": 3}'
    assert json.loads(redactor.value(arguments)) == {"to": "[email]", "card": "[card]", "n": 3}
    assert redactor.value({"ann@example.com": [4111111111111111, 12.5, True, 20417]}) == {
        "[email]": ["[card]", 12.5, True, 20417]
    }
    assert redactor.value('{"a": 1}') == '{"a": 1}'
    picture = "data:image/png;base64," + "iVBORw0KGgo4111111111111111" * 200
    assert redactor.text(picture) == picture


def test_threads_stay_apart_and_feedback_finds_them(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        sink = Redacted(store, Redactor())
        for who in ("ann@example.com", "bob@example.com"):
            run = Trace(thread=f"chat-{who}")
            sink.begin(run)
            sink.end(run.id, partial(Trace.model_copy, run))
        store.flush()
        kept = list(store.traces())
        assert len({trace.thread for trace in kept}) == 2
        assert (
            store.feedback("csat", 5, thread="chat-ann@example.com", comment="call +49 30 901820")
            == 1
        )
        assert [f.comment for t in store.traces() for f in t.feedback] == ["call [phone]"]
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"example.com" not in left


async def recorded(engine: str, store: TraceStore, text: str, **options: Any) -> None:
    policy = connect(engine, "policy").sampling(Sampling(version="policy", max_tokens=16))
    graph = StateGraph(MessagesState)

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await policy.ainvoke(state["messages"])]}

    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    await record(graph.compile(), store, **options).ainvoke({"messages": [HumanMessage(text)]})
    store.flush()


async def test_a_recorded_run_is_redacted_and_is_not_trained_on(
    engine: str, tmp_path: Path
) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        await recorded(engine, store, "I am ann@example.com")
        await recorded(engine, store, "I am Ann")
        personal, harmless = store.traces()
    assert "ann@" not in personal.model_dump_json()
    assert (personal.exactness, harmless.exactness) == ("text", "exact")
    assert trajectory(harmless).rows
    with pytest.raises(NotExact):
        trajectory(personal)


async def test_redaction_can_be_left_out(engine: str, tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        await recorded(engine, store, "I am ann@example.com", redact=False)
        (trace,) = store.traces()
    assert (trace.exactness, "ann@example.com" in json.dumps(trace.messages)) == ("exact", True)


async def test_tokens_can_be_kept_sealed(engine: str, tmp_path: Path) -> None:
    key = new_key()
    with TraceStore(tmp_path / "traces.db") as store:
        await recorded(engine, store, "I am ann@example.com", redact=Redactor(key=key))
        (trace,) = store.traces()
    assert trace.exactness == "text"
    opened = unseal(trace, key)
    assert opened.exactness == "exact"
    assert trajectory(opened).tokens > 0
    with pytest.raises(BadInput, match="another"):
        unseal(trace, new_key())
    with pytest.raises(BadInput, match="key"):
        Redactor(key=b"short")


def test_a_whole_trace_is_redacted() -> None:
    trace = Trace(
        messages=({"role": "user", "content": "ann@example.com"},),
        output={"to": "ann@example.com"},
        error="x@y.zz",
    )
    assert "@" not in Redactor().trace(trace).model_dump_json()
