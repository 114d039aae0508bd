"""The pool of policy servers: retries that sample into one trace once, the breaker, room, homes of conversations, versions."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from transformers import AutoTokenizer

from stateset_agents.errors import BadInput, NotExact, PolicyRefused, PolicyUnreachable
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.jobs.tokenizer import check_tokenizer
from stateset_agents.policy import pool, sequence_extension, transport
from stateset_agents.policy.capabilities import probe
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.completion import Completion, fetch
from stateset_agents.policy.pool import ReplicaPool, pool_at
from stateset_agents.policy.publishing import Publisher
from stateset_agents.policy.weight_files import SEED_POLICY, check_adapter
from stateset_agents.scenario import Scenario
from stateset_agents.tools.toolset import SERVICE_PROMPT, SERVICE_TOOLS
from stateset_agents.trace import Sampling
from tests.policy_double import Double, Drop, answer, doubles, entry, lose_the_first, small_adapter

BODY: dict[str, Any] = {
    "model": "policy",
    "messages": [{"role": "user", "content": "hi"}],
    "seed": 3,
}


def pooled(made: list[Double]) -> ReplicaPool:
    return ReplicaPool([double.url for double in made])


async def test_an_answer_that_is_lost_is_asked_for_again_with_the_same_seed_and_marked() -> None:
    async with doubles(1) as (server,):
        server.act = lose_the_first
        policy = connect(server.url, "policy", retry_seconds=10).sampling(
            Sampling(version="policy", seed=5)
        )
        message = await policy.ainvoke([HumanMessage("hi")])
        assert [body["seed"] for body in server.requests] == [server.requests[0]["seed"]] * 2
        tokens = fetch(message.response_metadata["id"])
        assert tokens is not None
        # The tokens are those of the answer that came, and of no other.
        assert (tokens.sampled_ids, tokens.tries) == ((2, 1), 2)


async def test_without_patience_a_lost_answer_is_an_error_at_once() -> None:
    async with doubles(1) as (server,):

        async def lost(number: int, body: dict[str, Any]) -> None:
            raise Drop

        server.act = lost
        with pytest.raises(PolicyUnreachable, match="found none"):
            await connect(server.url, "policy").ainvoke([HumanMessage("hi")])
        assert len(server.requests) == 1


async def test_a_server_that_dies_costs_only_its_own_calls_which_go_elsewhere() -> None:
    async with doubles(2, seconds=0.8) as made:
        servers = pooled(made)
        calls = [asyncio.create_task(servers.post("/chat/completions", BODY)) for _ in range(20)]
        await asyncio.sleep(0.1)
        await made[0].stop()
        answers = await asyncio.gather(*calls)
        assert len({body["id"] for body, _ in answers}) == 20
        again = [sent for _, sent in answers if sent.tries > 1]
        assert 0 < len(again) <= 10
        assert {sent.replica for sent in again} == {made[1].url}
        # Nobody asks the dead one any more.
        answers = await asyncio.gather(*(servers.post("/chat/completions", BODY) for _ in range(8)))
        assert {(sent.replica, sent.tries) for _, sent in answers} == {(made[1].url, 1)}
        await made[0].start()


async def test_a_server_that_is_back_is_given_its_versions_before_it_is_asked(
    tmp_path: Path,
) -> None:
    async with doubles(1) as (server,):
        servers = pooled([server])
        publisher = Publisher(servers)
        await publisher.publish("run-v1", small_adapter(tmp_path / "one"))
        assert server.versions == {"run-v1": str(tmp_path / "one")}
        await server.stop()
        body = {**BODY, "model": "run-v1"}
        call = asyncio.create_task(servers.post("/chat/completions", body, retry_seconds=20))
        await asyncio.sleep(0.5)
        await server.start()
        _, sent = await call
        assert sent.tries > 1
        assert server.versions == {"run-v1": str(tmp_path / "one")}


async def test_a_server_that_forgot_a_version_meanwhile_is_told_again(tmp_path: Path) -> None:
    async with doubles(1) as (server,):
        servers = pooled([server])
        publisher = Publisher(servers)
        await publisher.publish("run-v1", small_adapter(tmp_path / "one"))
        server.versions.clear()  # it died and came back between two calls
        body_back, _ = await servers.post(
            "/chat/completions", {**BODY, "model": "run-v1"}, retry_seconds=10
        )
        assert body_back["model"] == "run-v1"


async def test_calls_wait_for_room_and_one_that_is_cancelled_leaves_its_place() -> None:
    async with doubles(1, seconds=0.05) as (server,):
        servers = ReplicaPool([server.url], max_running=4)
        calls = [asyncio.create_task(servers.post("/chat/completions", BODY)) for _ in range(24)]
        await asyncio.sleep(0.02)
        for call in calls[4:12]:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(result, tuple) for result in done) == 16
        assert server.most == 4
        assert servers.replicas[0].running == 0


async def test_a_conversation_stays_at_its_server_and_new_ones_go_where_least_is_to_do() -> None:
    async with doubles(2, seconds=0.05) as made:
        servers = pooled(made)
        await asyncio.gather(
            *(servers.post("/chat/completions", BODY, session=f"c{n}") for n in range(10))
        )
        counts = [len(double.requests) for double in made]
        assert counts == [5, 5]
        where: dict[int, str] = {}
        for n in range(10):
            for _ in range(2):
                _, sent = await servers.post("/chat/completions", BODY, session=f"c{n}")
                assert where.setdefault(n, sent.replica) == sent.replica


async def test_a_server_that_asks_to_come_back_later_is_asked_later() -> None:
    async with doubles(1) as (server,):

        async def busy(number: int, body: dict[str, Any]) -> web.Response | None:
            error = {"error": {"message": "too many"}}
            return web.json_response(error, status=429) if number < 3 else None

        server.act = busy
        servers = pooled([server])
        _, sent = await servers.post("/chat/completions", BODY, retry_seconds=10)
        assert sent.tries == 3
        assert servers.replicas[0].failures == 0


async def test_a_call_that_breaks_a_living_server_each_time_is_not_sent_for_ever() -> None:
    async with doubles(1) as (server,):

        async def broken(number: int, body: dict[str, Any]) -> web.Response | None:
            return web.json_response({"error": {"message": "kernel"}}, status=500)

        server.act = broken
        with pytest.raises(PolicyUnreachable, match="500: kernel"):
            await pooled([server]).post("/chat/completions", BODY, retry_seconds=60)
        assert len(server.requests) == pool.MAX_CRASHES


async def test_a_server_that_stops_answering_is_left_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "ANSWER_SECONDS", 0.5)
    async with doubles(2) as made:

        async def hangs(number: int, body: dict[str, Any]) -> None:
            await asyncio.sleep(30)

        made[0].act = hangs
        servers = pooled(made)
        answers = await asyncio.gather(*(servers.post("/chat/completions", BODY) for _ in range(8)))
        assert {sent.replica for _, sent in answers} == {made[1].url}


async def test_a_wrong_key_is_named() -> None:
    async with doubles(1) as (server,):
        server.key = "right"
        with pytest.raises(PolicyRefused, match="STATESET_POLICY_KEY"):
            await connect(server.url, "policy", api_key="wrong").ainvoke([HumanMessage("hi")])
        await connect(server.url, "policy", api_key="right").ainvoke([HumanMessage("hi")])


async def test_a_stream_that_broke_off_is_not_asked_for_again_and_one_that_never_began_is() -> None:
    async with doubles(1) as (server,):

        async def broken(number: int, body: dict[str, Any]) -> web.StreamResponse:
            if number == 1:
                raise Drop
            response = web.StreamResponse()
            await response.prepare(server.request)
            delta = {"index": 0, "delta": {"content": "hel"}, "finish_reason": None}
            event = {"id": "c", "model": "policy", "choices": [delta]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            raise Drop

        server.act = broken
        policy = connect(server.url, "policy", retry_seconds=10)
        policy = policy.model_copy(update={"disable_streaming": False})
        pieces = list[str]()

        async def read() -> None:
            async for chunk in policy.astream([HumanMessage("hi")]):
                pieces.append(chunk.text)

        with pytest.raises(PolicyUnreachable, match="broke off"):
            await read()
        assert "".join(pieces) == "hel"
        assert len(server.requests) == 2


async def test_an_episode_whose_servers_are_gone_is_failed_and_never_a_score(
    development: list[Scenario],
) -> None:
    async with doubles(1) as (server,):

        async def lost(number: int, body: dict[str, Any]) -> None:
            raise Drop

        server.act = lost
        trace = await play_episode(
            development[0],
            connect(server.url, "policy", retry_seconds=0.2),
            Sampling(version="policy"),
        )
        assert trace.status == "failed"
        assert "tries" in (trace.error or "")


async def test_versions_stay_while_an_episode_reads_them(tmp_path: Path) -> None:
    async with doubles(2) as made:
        servers = pooled(made)
        publisher = Publisher(servers)
        for number in range(4):
            await publisher.publish(f"run-v{number}", small_adapter(tmp_path / str(number)))
            if number == 1:
                pin = servers.pin(["run-v1"])
                pin.__enter__()
        for double in made:
            assert list(double.versions) == ["run-v1", "run-v2", "run-v3"]
        pin.__exit__(None, None, None)
        await publisher.publish("run-v4", small_adapter(tmp_path / "4"))
        await publisher.publish("other-v9", small_adapter(tmp_path / "9"))
        for double in made:
            assert list(double.versions) == ["run-v3", "run-v4", "other-v9"]
        await publisher.retire("other-v9")
        assert all(list(double.versions) == ["run-v3", "run-v4"] for double in made)


async def test_a_version_is_published_where_a_server_is_away_and_told_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with doubles(2) as made:
        servers = pooled(made)
        publisher = Publisher(servers)
        await made[1].stop()
        await publisher.publish("run-v1", small_adapter(tmp_path / "1"))
        assert list(made[0].versions) == ["run-v1"]
        await made[1].start()
        body = {**BODY, "model": "run-v1"}
        await asyncio.gather(
            *(servers.post("/chat/completions", body, retry_seconds=5) for _ in range(8))
        )
        await made[0].stop()
        await servers.post("/chat/completions", body, retry_seconds=20)
        assert list(made[1].versions) == ["run-v1"]
        await made[0].start()


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "found none"),
        (lambda folder: cut(folder / "adapter_model.safetensors"), "to be whole"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "to be whole"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "Expected JSON"),
    ],
)
async def test_a_half_written_adapter_is_named(harm: Any, error: str, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "adapter")
    check_adapter(folder)
    harm(folder)
    async with doubles(1) as (server,):
        with pytest.raises(BadInput, match=error):
            await Publisher(pooled([server])).publish("run-v1", folder)
        assert not server.versions


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


async def test_a_later_call_is_sent_as_the_ids_of_the_one_before_it_and_what_was_added(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    plain = ReplicaPool.post

    async def listening(
        self: ReplicaPool, path: str, body: dict[str, Any], **options: Any
    ) -> tuple[dict[str, Any], pool.Sent]:
        seen.append((path, body))
        return await plain(self, path, body, **options)

    monkeypatch.setattr(ReplicaPool, "post", listening)
    policy = connect(engine, "policy").sampling(
        Sampling(version="policy", temperature=0.0, max_tokens=60)
    )
    model = policy.bind_tools([tool.schema() for tool in SERVICE_TOOLS])
    messages: list[BaseMessage] = [
        SystemMessage(SERVICE_PROMPT),
        HumanMessage("Where is my order? My order is W39841. My zip is 62169."),
    ]
    first = await model.ainvoke(messages)
    tokens = fetch(first.response_metadata["id"])
    assert tokens is not None
    done = ToolMessage("{}", tool_call_id=first.tool_calls[0]["id"])
    later = await model.ainvoke([*messages, first, done])
    more = fetch(later.response_metadata["id"])
    assert more is not None
    before = (*tokens.prompt_ids, *tokens.sampled_ids)
    assert more.prompt_ids[: len(before)] == before
    paths = [path for path, _ in seen]
    assert paths == ["/chat/completions", "/tokenize", "/chat/completions"]
    assert seen[-1][1]["kv_transfer_params"]["prompt_token_ids"] == list(more.prompt_ids)
    # An app that edits what was said gets what it sent, and nothing that was sampled once.
    seen.clear()
    edited = AIMessage("Hello.", response_metadata=first.response_metadata)
    await model.ainvoke([*messages, edited, HumanMessage("Well?")])
    assert [path for path, _ in seen] == ["/chat/completions"]
    assert "kv_transfer_params" not in seen[0][1]


X = sequence_extension.content_of({"content": "x"})
Y = sequence_extension.content_of({"content": "y"})


def test_what_was_sampled_goes_back_as_it_was_however_it_would_be_written() -> None:
    """Token 9 ends a turn, 2 opens an answer; the template would write 5 6 as 4, and 7 7 as 3."""
    sequence = sequence_extension.SampledSequence(
        (1, 9, 2), (5, 6, 9), {1: sequence_extension.SampledTurn(X, 0, 1)}
    )
    assert sequence_extension.extend(sequence, [1, 9, 2, 4, 9, 8]) == [1, 9, 2, 5, 6, 9, 8]
    # Two calls later the first answer is still the one that was sampled.
    later = sequence_extension.SampledSequence(
        (1, 9, 2, 5, 6, 9, 8, 9, 2),
        (7, 7, 9),
        {1: sequence_extension.SampledTurn(X, 0, 1), 3: sequence_extension.SampledTurn(Y, 1, 1)},
    )
    assert sequence_extension.extend(later, [1, 9, 2, 4, 9, 8, 9, 2, 3, 9, 6]) == [
        1, 9, 2, 5, 6, 9, 8, 9, 2, 7, 7, 9, 6,
    ]  # fmt: skip
    # What is not the policy's has to be what it was, before an answer in its very turn as well; a shorter history is rendered anew.
    assert sequence_extension.extend(later, [1, 9, 2, 4, 9, 0, 9, 2, 3, 9, 6]) is None
    assert sequence_extension.extend(later, [1, 9, 0, 4, 9, 8, 9, 2, 3, 9, 6]) is None
    assert sequence_extension.extend(later, [1, 9, 2, 4, 9]) is None


def test_an_answer_is_gone_on_from_only_in_its_place_and_where_it_was_whole() -> None:
    turn = {"role": "assistant", "content": "x"}
    user, note = {"role": "user", "content": "?"}, {"role": "assistant", "content": "note"}
    message = AIMessage("x", response_metadata={"id": "r1"})
    conversation: list[BaseMessage] = [HumanMessage("?"), message, HumanMessage("?")]

    def kept(finish: str = "stop", stop_reason: object = None, max_tokens: int = 50) -> object:
        sequence_extension._sequences.pop("r1", None)
        call = sequence_extension.PendingCall(0, max_tokens)
        completion = Completion(
            response_id="r1", version="policy", prompt_ids=(1, 9, 2), sampled_ids=(5, 9),
            logprobs=(0.0, 0.0), finish_reason=finish,
        )  # fmt: skip
        sequence_extension.remember(completion, turn, stop_reason, call)
        return sequence_extension.extensible(conversation, {"messages": [user, turn, user]})

    assert kept() is not None
    assert (
        sequence_extension.extensible(conversation, {"messages": [user, note, turn, user]}) is None
    )
    # Cut off after a whole tool call, or ended by a word: the last token ends no turn.
    assert kept("tool_calls", max_tokens=2) is None
    assert kept("length") is None
    assert kept(stop_reason="x") is None


def changed(change: Any) -> Any:
    """Answers, each with a change to it."""

    async def act(number: int, body: dict[str, Any]) -> web.Response:
        made = answer(number, body)
        change(made, made["choices"][0], body)
        return web.json_response(made)

    return act


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda made, choice, body: made.pop("prompt_token_ids"), "return_token_ids"),
        (lambda made, choice, body: choice.update(token_ids=None), "return_token_ids"),
        (lambda made, choice, body: choice.update(logprobs=None), "a log-probability for each"),
        (
            lambda made, choice, body: choice.update(logprobs={"content": [entry(body, 1.0)] * 2}),
            "processed_logprobs",
        ),
    ],
)
async def test_a_server_that_does_not_say_what_it_sampled_is_refused(
    change: Any, error: str
) -> None:
    async with doubles(1) as (server,):
        await probe(pooled([server]), adapters=True)
        server.act = changed(change)
        with pytest.raises(NotExact, match=error):
            await probe(pooled([server]))


async def test_servers_that_are_not_alike_or_take_no_adapters_are_refused() -> None:
    async with doubles(2) as made:
        made[1].act = changed(lambda made, choice, body: made.update(prompt_token_ids=[9]))
        with pytest.raises(PolicyRefused, match="different tokens for the same words"):
            await probe(pooled(made))
        made[0].adapters = False
        with pytest.raises(PolicyRefused, match="--enable-lora"):
            await probe(pooled(made[:1]), adapters=True)
        assert not (await probe(pooled(made[:1]))).adapters
    with pytest.raises(PolicyUnreachable):
        await probe(ReplicaPool(["http://127.0.0.1:9/v1"]))


async def test_servers_with_another_tokenizer_than_the_one_that_trains_are_refused(
    served: str,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    await check_tokenizer(pool_at(served), "policy", tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(BadInput, match="other tokens of the same messages"):
        await check_tokenizer(pool_at(served), "policy", tokenizer)


async def test_one_that_hiccups_while_another_is_dead_is_asked_again() -> None:
    async with doubles(2) as made:
        servers = pooled(made)
        await made[1].stop()

        async def hiccup(number: int, body: dict[str, Any]) -> web.Response | None:
            error = {"error": {"message": "once"}}
            return web.json_response(error, status=500) if number == 1 else None

        made[0].act = hiccup
        _, sent = await asyncio.wait_for(
            servers.post("/chat/completions", BODY, retry_seconds=30), 10
        )
        assert sent.replica == made[0].url
        await made[1].start()


async def test_who_waits_for_room_at_a_server_that_dies_is_told() -> None:
    async with doubles(1, seconds=30) as (server,):
        servers = ReplicaPool([server.url], max_running=2)
        calls = [asyncio.create_task(servers.post("/chat/completions", BODY)) for _ in range(8)]
        await asyncio.sleep(0.2)
        await server.stop()
        done = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 40)
        assert {type(result) for result in done} == {PolicyUnreachable}
        await server.start()


async def test_a_version_is_loaded_once_however_many_ask_for_it(tmp_path: Path) -> None:
    async with doubles(1) as (server,):
        servers = pooled([server])
        publisher = Publisher(servers)
        await publisher.publish("run-v1", small_adapter(tmp_path / "one"))
        server.versions.clear()
        server.loads = 0
        body = {**BODY, "model": "run-v1"}
        await asyncio.gather(
            *(servers.post("/chat/completions", body, retry_seconds=10) for _ in range(16))
        )
        assert server.loads == 1
