"""Somebody else's shop over MCP, for the commands: one of our agents with its server's tools.

A stdio server is started anew for every episode and every conversation, so that none sees what another did or who signed in
there; a server at a URL gets a session for each.
"""

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_mcp_adapters.sessions import Connection

from stateset_agents.errors import BadInput
from stateset_agents.graphs import agent
from stateset_agents.graphs.agent import Domain
from stateset_agents.graphs.custom import CustomGraph
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.jobs.config import JobConfig
from stateset_agents.scenario import Scenario
from stateset_agents.tools.mcp_client import McpBackend, McpTools
from stateset_agents.tools.rules import Rule, Signature, parse_rules

log = logging.getLogger(__name__)

OPEN = 64
"""Conversations whose servers are kept running; the least recently used is closed, and started anew if its conversation goes on."""


def connection_of(server: str) -> Connection:
    """The connection to a server: a URL, or a command line, which gets this process's environment."""
    if server.startswith(("http://", "https://")):
        return {"transport": "streamable_http", "url": server}
    try:
        command, *arguments = shlex.split(server)
    except ValueError as error:
        raise BadInput(
            f"--mcp: expected a URL or a command line, found {server!r}: {error}"
        ) from None
    return {"transport": "stdio", "command": command, "args": arguments, "env": dict(os.environ)}


async def listed(config: JobConfig) -> McpBackend:
    """The server's tools as its config chooses them, from a server that is started for that and ended. Raises BadInput if it
    does not answer, or a rule, a pattern or an argument names what it does not have."""
    assert config.mcp is not None
    tools = McpTools(
        tools=config.tools or ("*",), reads=config.read, writes=config.write, inject=config.inject
    )
    backend = McpBackend(connection_of(config.mcp), tools)
    try:
        await backend.start()
    finally:
        await backend.close()
    if config.rules is not None:
        backend.rules = _rules(Path(config.rules), backend)
    return backend


def _rules(file: Path, backend: McpBackend) -> Sequence[Rule]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"--rules: expected a file of rules at {str(file)!r}, found {error.strerror}."
        ) from None
    known = {
        name: Signature(
            arguments=frozenset(offer.schema["function"]["parameters"].get("properties", {})),
            quoted=False,
            writes=offer.writes is True,
        )
        for name, offer in backend.offers.items()
    }
    return parse_rules(text, where=str(file), tools=known)


def domain_of(config: JobConfig, backend: McpBackend) -> Domain:
    """The agent: its own prompt (`--prompt`); the shop's, if the server offers all the tools of the shop's agent; otherwise its
    duty and the rules."""
    ours = DOMAINS[config.graph]
    if config.prompt is not None:
        try:
            prompt = Path(config.prompt).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BadInput(
                f"--prompt: expected a file at {config.prompt!r}, found {error.strerror}."
            ) from None
        return Domain(name=ours.name, duty="", tools=(), role=ours.role, system_prompt=prompt)
    if {tool.name for tool in ours.tools} <= set(backend.offers):
        return ours
    if backend.rules is None:
        backend.rules = ()  # those of the bundled shop say nothing about another
    return Domain(name=ours.name, duty=ours.duty, tools=(), role=ours.role)


def episodes(config: JobConfig, customer: Any) -> CustomGraph:
    """Episodes in that shop, each with a server of its own."""
    first: list[McpBackend] = []

    async def world(scenario: Scenario) -> McpBackend:
        if not first:
            first.append(await listed(config))
        return first[0].fresh()

    def graph(policy: Any, backend: McpBackend) -> Any:
        domain = domain_of(config, backend)
        return agent.build(
            domain,
            bound=lambda _: agent.context(domain, policy, backend, thread="episode", guard=False),
        )

    return CustomGraph(graph, config.graph, world=world, customer=customer)


class Conversations:
    """A backend for each conversation."""

    def __init__(self, listed: McpBackend) -> None:
        self.listed = listed
        self._open: dict[str, McpBackend] = {}

    def of(self, thread: str, *, goes_on: bool = False) -> McpBackend:
        """The backend of a thread. If the conversation `goes_on` and its server does not, the model is told that it has to sign in
        again."""
        backend = self._open.pop(thread, None)
        if backend is None:
            backend = self.listed.fresh()
            backend.forgotten = goes_on
            if goes_on:
                log.warning(
                    "a conversation goes on with another server, which does not know its customer"
                )
        self._open[thread] = backend
        while len(self._open) > OPEN:
            self._open.pop(next(iter(self._open))).leave()
        return backend

    async def close(self) -> None:
        for backend in self._open.values():
            await backend.close()
