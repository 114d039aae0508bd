"""Replay of an episode: with the recorded answers, as a proof; or with another tool result, as a counterfactual.

same        shop of the scenario, customer, recorded answers  ->  the same messages, tool calls and changes, or the first difference
with SWAP   recorded answers up to the tool's call, its result replaced  ->  the policy goes on from there
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict

from stateset_agents.errors import BadInput
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.tools.backend import Ability, Backend, Offer
from stateset_agents.tools.executor import Outcome
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.shop.generate import Shops, generate
from stateset_agents.tools.tool import Session
from stateset_agents.trace import Trace


class Swap:
    """One result of a tool, replaced once."""

    def __init__(self, tool: str, result: dict[str, Any]) -> None:
        self.tool, self.result = tool, result
        self.done = False

    def take(self, session: Session, name: str) -> Outcome | None:
        if self.done or name != self.tool:
            return None
        self.done = True
        return Outcome(status="done", result=self.result, session=session)


class Remembered(BaseChatModel):
    """Gives the recorded answers; after a result was swapped, `live` answers."""

    answers: Sequence[AIMessage]
    swap: Swap | None = None
    live: BaseChatModel | None = None

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @property
    def _llm_type(self) -> str:
        return "remembered"

    def _next(self, messages: list[BaseMessage]) -> ChatResult:
        given = sum(isinstance(message, AIMessage) for message in messages)
        if given >= len(self.answers):
            raise LookupError(f"the run continues after its {len(self.answers)} recorded answers")
        return ChatResult(generations=[ChatGeneration(message=self.answers[given])])

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        return self._next(messages)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        if self.swap is not None and self.swap.done and self.live is not None:
            answer = await self.live.ainvoke(messages, stop=stop, **kwargs)
            return ChatResult(generations=[ChatGeneration(message=answer)])
        return self._next(messages)


class Swapped:
    """A backend in which one result is replaced."""

    def __init__(self, backend: Backend, swap: Swap) -> None:
        self._backend, self._swap = backend, swap

    @property
    def can(self) -> frozenset[Ability]:
        return self._backend.can

    @property
    def offers(self) -> Mapping[str, Offer]:
        return self._backend.offers

    @property
    def rules(self) -> Sequence[Rule] | None:
        return self._backend.rules

    async def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        return self._swap.take(session, name) or await self._backend.propose(
            session, name, arguments
        )

    async def commit(
        self, session: Session, name: str, arguments: dict[str, Any], **options: Any
    ) -> Outcome:
        return await self._backend.commit(session, name, arguments, **options)

    async def made(
        self, session: Session, name: str, arguments: dict[str, Any], *, key: str
    ) -> Outcome | None:
        return await self._backend.made(session, name, arguments, key=key)

    async def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        return await self._backend.decline(session, name, arguments)


async def replay(
    trace: Trace, *, rules: Sequence[Rule] | None = None, shops: Shops = generate
) -> tuple[Trace, str | None]:
    """Replay an episode, under its rules and in its shop. Returns it, and its first difference from the record, or None if it is identical. Raises BadInput for
    a trace that is not an episode of one of the shop's graphs."""
    again = await _played(trace, Remembered(answers=_answers(trace)), None, rules, shops)
    return again, difference(trace, again)


async def counterfactual(
    trace: Trace,
    swap: Swap,
    policy: BaseChatModel,
    *,
    rules: Sequence[Rule] | None = None,
    shops: Shops = generate,
) -> Trace:
    """What `policy` does if a tool returns something else. Raises BadInput where the tool was not used."""
    if all(call.name != swap.tool for call in trace.tool_calls):
        used = ", ".join(dict.fromkeys(call.name for call in trace.tool_calls)) or "none"
        raise BadInput(
            f"--set: expected a tool that the episode used ({used}), found {swap.tool!r}."
        )
    model = Remembered(answers=_answers(trace), swap=swap, live=policy)
    again = await _played(trace, model, swap, rules, shops)
    return again.model_copy(update={"id": f"{trace.id[:12]}-with-{swap.tool}"})


async def _played(
    trace: Trace,
    model: BaseChatModel,
    swap: Swap | None,
    rules: Sequence[Rule] | None,
    shops: Shops,
) -> Trace:
    if trace.scenario is None:
        raise BadInput(
            f"Expected an episode, found that trace {trace.id[:12]} has no scenario: give --graph module:graph to replay a "
            "recorded app."
        )
    wrap_backend = None if swap is None else lambda backend: Swapped(backend, swap)
    return await play_episode(
        trace.scenario,
        model,
        trace.sampling,
        graph=trace.graph,
        wrap_backend=wrap_backend,
        rules=rules,
        shops=shops,
    )


def _answers(trace: Trace) -> list[AIMessage]:
    """The model's messages: the first assistant messages, one for each call. A hand-off's message comes after them."""
    made = convert_to_messages([dict(m) for m in trace.messages if m["role"] == "assistant"])
    answers = [message for message in made if isinstance(message, AIMessage)]
    return answers[: len(trace.calls)]


def difference(before: Trace, after: Trace) -> str | None:
    """The first difference between two runs, in the order of events."""
    for number, (message, other) in enumerate(
        itertools.zip_longest(before.messages, after.messages)
    ):
        if message != other:
            return f"message {number}: expected {message}, found {other}"
    for number, (call, again) in enumerate(
        itertools.zip_longest(before.tool_calls, after.tool_calls)
    ):
        if call != again:
            return f"tool call {number}: expected {call}, found {again}"
    if before.changes != after.changes:
        odd = sorted({str(c) for c in {*before.changes} ^ {*after.changes}})
        return f"changes of the shop: {odd[0]} is in one of them alone"
    if (before.status, before.error) != (after.status, after.error):
        return (
            f"expected it to end {before.status}, found {after.status} {after.error or ''}".strip()
        )
    return None
