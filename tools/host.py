"""Tools of a host application, and several backends as one."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ValidationError

from stateset_agents.errors import BadInput
from stateset_agents.tools.backend import Ability, Backend, Foreign, Offer
from stateset_agents.tools.executor import Outcome, refused
from stateset_agents.tools.tool import Session


class HostTools(Foreign):
    """LangChain tools of an app with its own database and rules. Those named in `writes` need the customer's confirmation. A
    tool gets the customer and the key in its `RunnableConfig`: `configurable["customer"]` and, for a write,
    `configurable["idempotency_key"]`. The app must make a write only once for its key."""

    def __init__(self, tools: Sequence[BaseTool], *, writes: Collection[str] = ()) -> None:
        self.tools = {tool.name: tool for tool in tools}
        unknown = sorted(set(writes) - set(self.tools))
        if unknown:
            raise BadInput(f"writes: expected names among the tools, found {unknown[0]!r}.")
        self.offers: Mapping[str, Offer] = {
            name: Offer(schema=convert_to_openai_tool(tool), writes=name in writes)
            for name, tool in self.tools.items()
        }

    async def act(
        self, session: Session, name: str, arguments: dict[str, Any], key: str | None
    ) -> Outcome:
        about = {} if key is None else {"idempotency_key": key}
        config: RunnableConfig = {"configurable": {"customer": session["customer"], **about}}
        try:
            answer = await self.tools[name].ainvoke(arguments, config)
        except ValidationError as error:
            first = error.errors()[0]
            return refused(session, "bad_arguments", f"{first['loc']}: {first['msg']}"[:120])
        except Exception as error:  # noqa: BLE001 (an app's bug is an answer to the model, not the run's end)
            return refused(session, "tool_failed", f"{type(error).__name__}: {error}"[:200])
        result = answer if isinstance(answer, dict) else {"result": answer}
        return Outcome(status="done", result=result, session=session)


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
