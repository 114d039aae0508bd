"""What naive trainers get wrong between a trace and a gradient; each check stands beside the naive way that fails it."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from transformers import AutoTokenizer

from stateset_agents.errors import NotExact
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.traces.record import record
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.packing.batches import Sample, batches
from stateset_agents.trainers.packing.trie import fold
from stateset_agents.trajectory import trajectory
from tests.servers import running


def call(
    prompt: Sequence[int], sampled: Sequence[int], *, node: str = "policy", name: str = "r"
) -> ModelCall:
    return ModelCall(
        response_id=name, node=node, prompt_ids=tuple(prompt), sampled_ids=tuple(sampled), logprobs=(-1.0,) * len(sampled)
    )  # fmt: skip


def trained(calls: Sequence[ModelCall]) -> Counter[tuple[tuple[int, ...], int]]:
    """Each token that gets a loss, with all that it is predicted from, as the trainer's tensors have it."""
    whole = trajectory(Trace(model_calls=tuple(calls)))
    (batch,) = batches([Sample(trajectory=whole, advantages=(1.0,) * len(whole.rows))], 10_000)
    trie = fold([(*row.prompt, *row.sampled) for row in whole.rows])
    assert batch.ids[0].tolist() == trie.ids
    tokens: Counter[tuple[tuple[int, ...], int]] = Counter()
    assert int(batch.mask_BT.sum()) == whole.tokens
    place = 0  # in the trajectory's span: what was sampled, call after call
    for number, row in enumerate(whole.rows):
        path = trie.nodes(number)
        for _ in row.sampled:
            pair = int(batch.sources_BT[0, place])
            before = path[: path.index(int(batch.nodes_P[pair])) + 1]
            token = int(batch.tokens_P[pair])
            assert token == int(batch.sampled_BT[0, place])
            tokens[tuple(trie.ids[n] for n in before), token] += 1
            place += 1
    return tokens


def wanted(calls: Sequence[ModelCall]) -> Counter[tuple[tuple[int, ...], int]]:
    """Each sampled token after its prompt and the tokens before it, once for each time it was sampled."""
    return Counter(
        ((*c.prompt_ids, *c.sampled_ids[:place]), token)
        for c in calls
        for place, token in enumerate(c.sampled_ids)
    )


@st.composite
def call_graphs(draw: st.DrawFn) -> list[ModelCall]:
    """Calls that go on from any earlier call's whole sequence, from a part of it, or from nothing."""
    token = st.integers(0, 3)  # few, so that much is shared by chance
    calls: list[ModelCall] = []
    for number in range(draw(st.integers(1, 9))):
        base: tuple[int, ...] = ()
        flip: Any = st.booleans()
        if calls and draw(flip):
            earlier = draw(st.sampled_from(calls))
            whole = (*earlier.prompt_ids, *earlier.sampled_ids)
            base = whole[: draw(st.integers(0, len(whole)))] if draw(flip) else whole
        prompt = (*base, *draw(st.lists(token, min_size=1, max_size=4)))
        sampled = draw(st.lists(token, min_size=1, max_size=4))
        calls.append(call(prompt, sampled, node=draw(st.sampled_from("ab")), name=f"r{number}"))
    return calls


@settings(max_examples=150, deadline=None)
@given(call_graphs(), st.randoms())
def test_every_sampled_token_is_trained_exactly_once_in_any_order(
    calls: list[ModelCall], rng: random.Random
) -> None:
    expected = wanted(calls)
    assert trained(calls) == expected
    shuffled = list(calls)
    rng.shuffle(shuffled)
    assert trained(shuffled) == expected


def test_two_agents_in_turns_are_two_chains() -> None:
    """A B A B A B: who takes each call for the continuation of the one before finds six rows, and shares nothing."""
    chains: dict[str, list[int]] = {"a": [1, 2], "b": [7, 8]}
    calls = []
    for number in range(6):
        name = "ab"[number % 2]
        sampled = [10 + number]
        calls.append(call(chains[name], sampled, node=name, name=f"r{number}"))
        chains[name] += [*sampled, 5]
    rows = [(*row.prompt, *row.sampled) for row in trajectory(Trace(model_calls=tuple(calls))).rows]
    trie = fold(rows)
    assert len(trie.segments) == 2
    assert len(trie.ids) == len(rows[4]) + len(rows[5])
    naive = sum(  # a row goes on from the one right before it, or is new
        len(row) if row[: len(before)] != before else len(row) - len(before)
        for before, row in zip([(), *rows], rows, strict=False)
    )
    assert naive > len(trie.ids)


def test_three_samples_of_one_prompt_stay_three() -> None:
    calls = [call([1, 2], [3, 4], name=f"r{n}") for n in range(3)]
    assert trained(calls) == {((1, 2), 3): 3, ((1, 2, 3), 4): 3}
    naive = {(c.prompt_ids, c.sampled_ids) for c in calls}  # a set of rows loses two of them
    assert len(naive) == 1


def test_the_mask_knows_nothing_of_padding() -> None:
    """Here the padding token is also the end of a turn, and was sampled in the middle of an answer."""
    pad = 0
    calls = [call([1, pad, 2], [3, pad, 4, pad])]
    assert trained(calls) == wanted(calls)
    assert sum(trained(calls).values()) == 4
    naive = sum(token != pad for token in calls[0].sampled_ids)
    assert naive == 2


def test_what_a_tool_said_is_read_and_never_trained() -> None:
    first = call([1], [2, 3])
    tool = [50, 51, 52]
    second = call([1, 2, 3, *tool], [4])
    learned = trained([first, second])
    assert not any(target in tool for _, target in learned)
    assert ((1, 2, 3, *tool), 4) in learned


def test_missing_log_probabilities_raise_and_are_never_a_ratio_of_one() -> None:
    whole = call([1], [2, 3])
    with pytest.raises(NotExact):
        trajectory(Trace(model_calls=(whole, whole.model_copy(update={"logprobs": ()}))))


async def test_trained_tokens_are_the_engines_and_not_those_of_the_text(tmp_path: Path) -> None:
    """An engine splits a word of a tool call in another way than the tokenizer would; so must the row."""
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    text = '<tool_call>{"name": "cancel_order"'
    canonical = tokenizer.encode(text, add_special_tokens=False)
    split = [token for piece in text for token in tokenizer.encode(piece, add_special_tokens=False)]
    assert tokenizer.decode(split) == tokenizer.decode(canonical)
    assert split != canonical
    prompts: list[list[int]] = [[1, 2, 3], [1, 2, 3, *split, 9]]

    async def chat(request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        assert body["return_token_ids"]
        assert body["logprobs"]
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        entries: list[Any] = [
            {"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []} for _ in split
        ]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop",
                  "token_ids": split, "logprobs": {"content": entries}}  # fmt: skip
        return web.json_response(
            {"id": f"c{turn}", "object": "chat.completion", "created": 0, "model": "v7", "choices": [choice],
             "prompt_token_ids": prompts[turn]}
        )  # fmt: skip

    engine = web.Application()
    engine.router.add_post("/v1/chat/completions", chat)
    async with running(engine) as url:
        model = connect(url, "v7")

        async def answer(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await model.ainvoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("answer", answer)
        graph.add_edge(START, "answer")
        graph.add_conditional_edges(
            "answer", lambda s: "answer" if len(s["messages"]) < 3 else "__end__"
        )
        with TraceStore(tmp_path / "traces.db") as store:
            await record(graph.compile(), store).ainvoke({"messages": [HumanMessage("cancel it")]})
            store.flush()
            (trace,) = store.traces()
    rows = trajectory(trace).rows
    assert [row.sampled for row in rows] == [tuple(split)] * 2
    assert [row.prompt for row in rows] == [tuple(prompt) for prompt in prompts]
    assert {row.version for row in rows} == {"v7"}
    naive = tokenizer.encode(str(trace.messages[1]["content"]), add_special_tokens=False)
    assert tuple(naive) != rows[0].sampled


def test_rows_are_told_apart_by_node_and_by_agent() -> None:
    places = [
        ("choose", "orchestrator:1"),
        ("policy", "service:2|policy:3"),
        ("policy", "risk:4|policy:5"),
        ("policy", "service:6|policy:7"),
    ]
    calls = [
        call([1], [2], node=node, name=f"r{n}").model_copy(update={"namespace": namespace})
        for n, (node, namespace) in enumerate(places)
    ]
    whole = trajectory(Trace(model_calls=tuple(calls)))
    assert {name: [row.number for row in rows] for name, rows in whole.by("node").items()} == {
        "choose": [0],
        "policy": [1, 2, 3],
    }
    assert {name: [row.number for row in rows] for name, rows in whole.by("agent").items()} == {
        "": [0],
        "service": [1, 3],
        "risk": [2],
    }
    turns = [
        call.model_copy(update={"turn": turn})
        for call, turn in zip(calls, (1, 1, 2, 3), strict=True)
    ]
    by_turn = trajectory(Trace(model_calls=tuple(turns))).by("turn")
    assert {name: [row.number for row in rows] for name, rows in by_turn.items()} == {
        "1": [0, 1],
        "2": [2],
        "3": [3],
    }
