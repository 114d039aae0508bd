"""A later call is sent as the ids of the call before it and what was added."""

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from stateset_agents.policy import pool, sequence_extension
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.completion import Completion, fetch
from stateset_agents.policy.pool import ReplicaPool
from stateset_agents.tools.toolset import SERVICE_PROMPT, SERVICE_TOOLS
from stateset_agents.trace import Sampling


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
