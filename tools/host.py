"""Tools of a host application, and several backends as one."""

import inspect
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, get_args

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool, InjectedToolCallId
from langchain_core.tools.base import get_all_basemodel_annotations
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command
from pydantic import BaseModel, ValidationError

from stateset_agents.errors import BadInput
from stateset_agents.plain import plain
from stateset_agents.tools.backend import Ability, Backend, Foreign, Offer
from stateset_agents.tools.executor import Outcome, refused
from stateset_agents.tools.rules import Rule, Signature, named
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import shop_rules

Writes = Collection[str] | Callable[[str, dict[str, Any]], bool]
"""The tools that need the customer's confirmation: their names, or a function of a call's tool and arguments."""
Check = Callable[[str, dict[str, Any]], str | Awaitable[str | None] | None]
"""Looks at a call before anybody is asked to confirm it: why it would not go through, or None."""


Summary = Callable[[str, dict[str, Any]], str]
"""Says a write in words, for the customer who confirms it: item, amount, order, and not ids alone."""


class HostTools(Foreign):
    """LangChain tools of an app with its own database and rules.

    Those named in `writes` need the customer's confirmation. A tool gets the customer and the key in its `RunnableConfig`:
    `configurable["customer"]` and, for a write, `configurable["idempotency_key"]`. The app must make a write only once for its
    key. What a tool answers reaches the model as LangGraph's own ToolNode would send it: text as it is, data as JSON.

    Raises BadInput for `writes` that names no tool, for a tool that wants LangGraph's state or store, which only the host's own
    graph has, and for rules that use facts of our shop.
    """

    def __init__(
        self,
        tools: Sequence[BaseTool],
        *,
        writes: Writes = (),
        check: Check | None = None,
        summary: Summary | None = None,
        rules: Sequence[Rule] = (),
        approvals: bool = False,
    ) -> None:
        self.tools = {tool.name: tool for tool in tools}
        if len(self.tools) < len(tools):
            names = [tool.name for tool in tools]
            twice = next(name for name in names if names.count(name) > 1)
            raise BadInput(f"tools: expected different names, found {twice!r} twice.")
        if not callable(writes):
            unknown = sorted(set(writes) - set(self.tools))
            if unknown:
                raise BadInput(f"writes: expected names among the tools, found {unknown[0]!r}.")
        self._check, self._summary, self.approvals = check, summary, approvals
        self.offers: Mapping[str, Offer] = {
            name: Offer(schema=convert_to_openai_tool(tool), writes=_asks(writes, name))
            for name, tool in self.tools.items()
        }
        self._as_call = {name for name, tool in self.tools.items() if _says_more(tool)}
        self.rules = rules_for(rules, self.offers)

    def summary(self, name: str, arguments: dict[str, Any]) -> str:
        if self._summary is not None:
            return self._summary(name, arguments)
        return super().summary(name, arguments)

    async def check(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome | None:
        unknown = await super().check(session, name, arguments)
        if unknown is not None:
            return unknown
        schema = self.tools[name].tool_call_schema
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            try:
                schema.model_validate(arguments)
            except ValidationError as error:
                return _bad_arguments(session, error)
        if self._check is not None:
            reason = self._check(name, arguments)
            reason = await reason if inspect.isawaitable(reason) else reason
            if reason is not None:
                return refused(session, "impossible", str(reason)[:500])
        return None

    async def act(
        self, session: Session, name: str, arguments: dict[str, Any], key: str | None
    ) -> Outcome:
        call: Any = arguments
        if name in self._as_call:
            called = session.get("call") or uuid.uuid4().hex
            call = {"type": "tool_call", "name": name, "args": arguments, "id": called}
        try:
            answer = await self.tools[name].ainvoke(call, _config(session, key))
        except GraphBubbleUp:  # the tool asks somebody: the graph waits
            raise
        except Exception as error:  # noqa: BLE001 (an app's bug is an answer to the model, not the run's end)
            if isinstance(error, ValidationError) and key is None:
                return _bad_arguments(session, error)
            reason = f"{type(error).__name__}: {error}"[:500]
            unsure = " It may have been done all the same: look before you try again."
            return refused(session, "tool_failed", reason + (unsure if key is not None else ""))
        result, text, failed = _read(name, answer)
        return Outcome(
            status="invalid" if failed else "done", result=result, session=session, text=text
        )


def _bad_arguments(session: Session, error: ValidationError) -> Outcome:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "arguments"
    return refused(session, "bad_arguments", f"{where}: {first['msg']}"[:200])


def _asks(writes: Writes, name: str) -> bool | Callable[[dict[str, Any]], bool]:
    if callable(writes):
        return lambda arguments: bool(writes(name, arguments))
    return name in writes


def rules_for(rules: Sequence[Rule], offers: Mapping[str, Offer]) -> tuple[Rule, ...]:
    """Those of the rules that are about these tools of another shop, with `writes` spelled out. Raises BadInput for a rule that
    uses facts of our shop."""
    signatures = {}
    for name, offer in offers.items():
        properties = offer.schema["function"].get("parameters", {}).get("properties", {})
        signatures[name] = Signature(
            arguments=frozenset(properties), quoted=False, writes=offer.writes is not False, foreign=True
        )  # fmt: skip
    kept = []
    for rule in rules:
        applies = tuple(name for name in named(rule, signatures) if name in signatures)
        for name in applies:
            strange = next((f for f in rule.facts if not signatures[name].tells(*f)), None)
            if strange is not None:
                raise BadInput(
                    f"Rule {rule.id!r}: expected facts that a call of {name!r} has (its arguments, call.confirmed, "
                    f"call.approved, session.customer), found {'.'.join(strange)}."
                )
        if applies:
            kept.append(rule.model_copy(update={"applies_to": applies}))
    return tuple(kept)


def _config(session: Session, key: str | None) -> RunnableConfig:
    """The run's own config with the customer and the key: a tool may ask somebody, stream or read the thread as in any node."""
    about = {} if key is None else {"idempotency_key": key}
    config = ensure_config()
    known = config.get("configurable", {})
    called = {"tool_call_id": session["call"]} if "call" in session else {}
    return {
        **config,
        "configurable": {**known, "customer": session["customer"], **about},
        "metadata": {**config.get("metadata", {}), **called},
    }


def _says_more(tool: BaseTool) -> bool:
    """Whether a tool has to be called with its call's id, because its answer has more than a content: an artefact, or an error
    that it handles itself. Raises BadInput if it wants what only the host's own graph has."""
    schema, offered = tool.get_input_schema(), tool.tool_call_schema
    annotations = get_all_basemodel_annotations(schema)
    shown = get_all_basemodel_annotations(offered) if isinstance(offered, type) else annotations
    by_id = False
    for name in (annotations.keys() - shown.keys()) | tool._injected_args_keys:
        kinds = get_args(annotations.get(name))
        if any(isinstance(k, InjectedToolCallId) or k is InjectedToolCallId for k in kinds):
            by_id = True
            continue
        raise BadInput(
            f"tools: expected {tool.name!r} to take its call's arguments, a RunnableConfig or its call's id, found "
            f"{name!r}, which the graph would have to inject."
        )
    handled = tool.handle_tool_error or tool.handle_validation_error
    return by_id or bool(handled) or tool.response_format != "content"


def _read(name: str, answer: Any) -> tuple[Any, str | None, bool]:
    """A tool's answer as plain data, as the model reads it, and whether it says that it failed."""
    failed = False
    if isinstance(answer, Command):
        logging.getLogger(__name__).warning(
            "tool %s answered with a Command: its messages are read, its update of other state is not", name
        )  # fmt: skip
        update = answer.update if isinstance(answer.update, dict) else {}
        messages = [m for m in update.get("messages", ()) if isinstance(m, ToolMessage)]
        answer = messages[-1] if messages else update
    if isinstance(answer, ToolMessage):
        failed = answer.status == "error"
        answer = answer.content
    result = plain(answer)
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    if isinstance(result, str):
        result = json_object(result) or result
    return result, text, failed or says_failed(result)


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or None."""
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def says_failed(result: Any) -> bool:
    """Whether an answer says itself that nothing was done: `ok` or `success` is false, or there is an `error`."""
    if not isinstance(result, dict):
        return False
    refused = result.get("ok") is False or result.get("success") is False
    return refused or result.get("isError") is True or bool(result.get("error"))


class Several:
    """Several backends as one: each tool runs in its own backend."""

    def __init__(self, *backends: Backend) -> None:
        self.where: dict[str, Backend] = {}
        for backend in backends:
            twice = sorted(set(backend.offers) & set(self.where))
            if twice:
                raise BadInput(f"Expected tools of different names, found {twice[0]!r} twice.")
            self.where |= dict.fromkeys(backend.offers, backend)
        self.offers: Mapping[str, Offer] = {
            name: backend.offers[name] for name, backend in self.where.items()
        }
        self.can: frozenset[Ability] = frozenset.intersection(*(b.can for b in backends))
        rules = [shop_rules() if b.rules is None else b.rules for b in backends]
        self.rules: Sequence[Rule] = tuple(rule for of_one in rules for rule in of_one)

    async def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        if name not in self.where:
            return refused(session, "no_such_tool", "use one of the tools offered")
        return await self.where[name].propose(session, name, arguments)

    async def commit(
        self,
        session: Session,
        name: str,
        arguments: dict[str, Any],
        *,
        confirmed: bool,
        key: str,
        approved: bool = False,
    ) -> Outcome:
        return await self.where[name].commit(
            session, name, arguments, confirmed=confirmed, key=key, approved=approved
        )

    async def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        return await self.where[name].decline(session, name, arguments)

    async def made(
        self, session: Session, name: str, arguments: dict[str, Any], *, key: str
    ) -> Outcome | None:
        return await self.where[name].made(session, name, arguments, key=key)
