"""One of our graphs inside your app: your database, your sign-in, your checkpointer, your tools."""

from collections.abc import Callable, Sequence

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.store.base import BaseStore
from langgraph.types import Checkpointer

from stateset_agents.errors import BadInput
from stateset_agents.graphs import agent
from stateset_agents.graphs.agent import AgentGraph, Domain
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.nodes.state import Agents
from stateset_agents.tools.backend import Backend
from stateset_agents.tools.host import Check, HostTools, Several, Summary, Writes
from stateset_agents.tools.memory import Memory
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.shop.database import Database
from stateset_agents.tools.toolset import SIGNATURES

Identity = Callable[[RunnableConfig], str]
"""The signed-in customer, read from a run's config: the id that tools use, or '' for nobody."""


def build_graph(
    name: str,
    *,
    policy: BaseChatModel,
    backend: Backend | Database | None = None,
    identity: Identity | None = None,
    checkpointer: Checkpointer = None,
    tools: Sequence[BaseTool] = (),
    writes: Writes = (),
    check: Check | None = None,
    summary: Summary | None = None,
    rules: Sequence[Rule] | None = None,
    approvals: bool = False,
    store: BaseStore | None = None,
    prompt: str | None = None,
    guard: bool = True,
) -> AgentGraph:
    """An agent's graph that needs only messages and a `thread_id`.

    `name` is a shop agent ('service', 'sales', …) or, with `prompt` and `tools`, any other name. `backend` is a shop (its
    database is enough), a shop over MCP, or None if your tools do everything. `tools` are your LangChain tools; those named in
    `writes`, or the calls for which the function `writes` says so, wait for the customer's confirmation, an interrupt of type
    `confirmation`; `check` looks at a call before anybody is asked, and `summary` says it in words. `rules` (default: the shop's) apply by the tools' names, to
    yours too; with `approvals` a rule of that effect asks a person, an interrupt of type `approval`, and without it denies.
    With `store` the agent can keep notes for later conversations, each with the customer's consent.

    A turn has at most 40 steps, unless a run's config says otherwise (`recursion_limit`).

        graph = build_graph("service", policy=model, backend=PostgresShop(url), checkpointer=saver,
                            identity=lambda config: config["configurable"]["user"])
        await graph.ainvoke({"messages": [...]}, {"configurable": {"thread_id": "1", "user": "C7"}})

    Raises BadInput for an unknown name without a prompt, without a backend or tools, and for tools that need what only your own
    graph could inject.
    """
    if name not in DOMAINS and prompt is None:
        raise BadInput(f"Expected one of {', '.join(DOMAINS)}, or a prompt for {name!r}.")
    ours = DOMAINS.get(name, Domain(name=name, duty="", tools=(), system_prompt=prompt or ""))
    domain = ours if prompt is None else Domain(
        name=name, duty=ours.duty, tools=ours.tools, role=ours.role, system_prompt=prompt
    )  # fmt: skip
    backends: list[Backend] = []
    if isinstance(backend, Database):
        backends.append(agent.over(domain, backend, rules, approvals=approvals))
    elif backend is not None:
        backends.append(backend)
    if tools:
        host = HostTools(
            tools,
            writes=writes,
            check=check,
            summary=summary,
            rules=rules or (),
            approvals=approvals,
        )
        backends.append(host)
    memory = Memory(store) if store is not None else None
    if not backends:
        raise BadInput("Expected a backend or tools of your own, found neither.")
    if memory is not None:
        backends.append(memory)
    offered = {name for each in backends for name in each.offers}
    for rule in rules or ():
        if not offered.union(SIGNATURES, ["writes"]).issuperset(rule.applies_to):
            strange = next(n for n in rule.applies_to if n not in offered)
            raise BadInput(
                f"Rule {rule.id!r}: expected `applies_to` among the graph's tools, found {strange!r}."
            )
    acts = backends[0] if len(backends) == 1 else Several(*backends)

    def bound(config: RunnableConfig) -> Agents:
        return agent.context(
            domain, policy, acts, guard=guard, memory=memory,
            thread=str(config.get("configurable", {}).get("thread_id", "")),
            customer=identity(config) if identity is not None else "",
        )  # fmt: skip

    return agent.build(domain, checkpointer, bound=bound)
