"""Which graph `serve` and `chat` put to use: one of the shop's, an agent over MCP, or a graph of your own."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from stateset_agents.cli.sources import refuse, shop_from

MCP_FIELDS = ("mcp", "tools", "read", "write", "inject", "prompt")
"""Fields of a config about a shop over MCP."""


def graph_of(
    config: Any, *, database: str | None = None, schema: str | None = None, shop: Any = None, shop_options: dict[str, Any],
    speaks: Sequence[str] | None = None, guard: bool | None = None, approvals: bool | None = None,
) -> AbstractAsyncContextManager[Any]:  # fmt: skip
    """The graph of a config, ready to be served. `shop`: a shop that was made already; `shop_options`: those that only the bundled
    shop has, by name. Raises BadInput for an option that is another graph's."""
    from stateset_agents.graphs.names import GRAPHS
    from stateset_agents.jobs.registry import load_object, rules_of
    from stateset_agents.jobs.served_graphs import OwnGraph, ServedGraph, mcp_graph

    place = {"database": database, "schema": schema, **shop_options}
    if config.mcp is not None:
        refuse("of the bundled shop, and not of one over MCP", **place, speaks=speaks)
        return mcp_graph(config, guard=guard is not False, approvals=bool(approvals))
    if config.graph not in GRAPHS:
        refuse(
            "of the shop's graphs; a graph of your own has its own, see build_graph(…)", **place, guard=guard,
            approvals=approvals,
        )  # fmt: skip
        made = load_object(config.graph, "--graph")
        return nullcontext(OwnGraph(name=config.graph, graph=made, speakers=speaks or ()))
    refuse("of a graph of your own", speaks=speaks)
    if database is None:
        refuse("of a shop in a database (--database)", schema=schema)
    else:
        made_by = {name: value for name, value in shop_options.items() if name.endswith("seed")}
        refuse("of a generated shop, and not of a database", **made_by)
    if shop is None or database is not None:
        seed = shop_options.get("shop_seed")
        meaning = shop_options.get("meaning")
        shop = shop_from(database, schema or "shop", 1 if seed is None else seed, meaning)
    return nullcontext(
        ServedGraph(
            name=config.graph, shop=shop, rules=rules_of(config.rules), guard=guard is not False, approvals=bool(approvals)
        )
    )  # fmt: skip
