"""`scenarios`, `shop` and `rules`: the commands about data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stateset_agents.cli.help import CommandLine
from stateset_agents.cli.sources import Schema, rules_from

if TYPE_CHECKING:
    from stateset_agents.scenario import Scenario

scenarios = CommandLine(help="Make and check scenarios.")
shop = CommandLine(help="A persistent shop, and simulated sales.")
rules = CommandLine(help="The rules that the executor enforces.")


@scenarios.command("generate")
def scenarios_generate(
    out: Annotated[Path, typer.Option(help="File to write, JSON lines.")],
    seed: Annotated[int, typer.Option(help="Which scenarios.")] = 1,
    count: Annotated[int, typer.Option(help="Number of scenarios.")] = 100,
    split: Annotated[
        Literal["train", "development", "held_out"],
        typer.Option(help="Whose names, items and phrasings."),
    ] = "train",
    intent: Annotated[
        list[str] | None, typer.Option(help="Only this intent; can be given several times.")
    ] = None,
    complications: Annotated[
        int, typer.Option(help="Complications of each scenario, at most: 0 to 3.", min=0, max=3)
    ] = 0,
    locale: Annotated[
        list[str] | None,
        typer.Option(
            help="Language to draw from (en, de, es, fr, pt); can be given several times."
        ),
    ] = None,
) -> None:
    """Write solvable scenarios with their goals and plans."""
    import itertools

    from stateset_agents.errors import BadInput
    from stateset_agents.tools.scenarios.generator import ALL_INTENTS, INTENTS, scenarios
    from stateset_agents.tools.wording import locales_of

    intents = tuple(intent) if intent else INTENTS
    unknown = sorted(set(intents) - set(ALL_INTENTS))
    if unknown:
        raise BadInput(f"--intent: expected one of {', '.join(ALL_INTENTS)}, found {unknown[0]!r}.")
    if count < 1:
        raise BadInput(f"--count: expected at least 1, found {count}.")
    made = scenarios(
        seed=seed,
        split=split,
        intents=intents,
        complications=complications,
        locales=locales_of(locale),
    )
    with out.open("w", encoding="utf-8") as file:
        for scenario in itertools.islice(made, count):
            file.write(scenario.model_dump_json() + "\n")
    print(f"{count} scenarios in {out}")


@scenarios.command("check")
def scenarios_check(
    file: Path,
    graph: Annotated[
        str | None, typer.Option(help="package.module:graph of your own, which plays the plans.")
    ] = None,
    world: Annotated[
        str | None, typer.Option(help="package.module:Class of your own, which the graph acts on.")
    ] = None,
) -> None:
    """Check that a file's scenarios are valid, and that those with a plan are solvable: on the bundled shop, or by --graph."""
    from stateset_agents.graphs.names import GRAPHS
    from stateset_agents.scenario import load_scenarios
    from stateset_agents.tools.scenarios.mutants import mutants, score_acts

    every = load_scenarios(file)
    if graph is not None:
        _check_plans(every, graph, world)
        return
    foreign = [s for s in every if s.plan and s.graph not in GRAPHS]
    if foreign:
        print(f"{len(foreign)} plans are for graph {foreign[0].graph!r}: check them with --graph")
    planned = [
        s for s in every
        if s.plan and s.goal is not None and s.split != "user" and s.graph in GRAPHS
    ]  # fmt: skip
    unsolved = [s.id for s in planned if not score_acts(s, s.plan).success]
    leaky = [
        s.id for s in planned if any(score_acts(s, acts).success for acts in mutants(s).values())
    ]
    print(f"{len(every)} scenarios, {len(planned)} with a plan")
    for name, ids in (("not solved by their plan", unsolved), ("solved by a wrong plan", leaky)):
        if ids:
            print(f"{len(ids)} {name}: {', '.join(ids[:5])}")
    raise typer.Exit(2 if unsolved or leaky or (foreign and not planned) else 0)


def _check_plans(every: "list[Scenario]", graph: str, world: str | None) -> None:
    """Play the plans through a graph of your own."""
    import asyncio

    from stateset_agents.jobs.config import JobConfig
    from stateset_agents.jobs.registry import custom_graph
    from stateset_agents.nodes.oracle import Oracle
    from stateset_agents.trace import Sampling

    made = custom_graph(JobConfig(graph=graph, world=world))
    planned = [s for s in every if s.plan]
    wrong = []
    for scenario in planned:
        trace = asyncio.run(made.play_episode(scenario, Oracle(plan=scenario.plan), Sampling()))
        goal = trace.goal_score
        if trace.status != "completed":
            wrong.append(f"{scenario.id}: {trace.status}, {trace.error}")
        elif goal is not None and not goal.success:
            wrong.append(f"{scenario.id}: its plan does not reach its goal")
    print(
        f"{len(every)} scenarios, {len(planned)} with a plan, {len(planned) - len(wrong)} played to their end"
    )
    for line in wrong[:20]:
        print(line)
    raise typer.Exit(2 if wrong or not planned else 0)


@scenarios.command("survey")
def scenarios_survey(
    seed: Annotated[int, typer.Option(help="Which candidates.")] = 1,
    count: Annotated[int, typer.Option(help="Candidates of each intent.")] = 200,
    split: Annotated[
        Literal["train", "development", "held_out"],
        typer.Option(help="Whose names, items and phrasings."),
    ] = "train",
) -> None:
    """The share of candidates of each intent that doing nothing, or another mistake, solves."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from stateset_agents.tools.scenarios.generator import ALL_INTENTS, survey

    table = Table(box=None)
    for column in (
        "intent",
        "candidates",
        "unsolved",
        "by doing nothing",
        "by a wrong plan (rejected)",
    ):
        table.add_column(column, justify="left" if column == "intent" else "right")
    console = Console(highlight=False)
    rows = survey(seed=seed, split=split, count=count)
    for row in track(rows, "drawing", total=len(ALL_INTENTS), console=Console(stderr=True)):
        table.add_row(
            row.intent, str(row.candidates), str(row.unsolved),
            f"{row.by_doing_nothing / row.candidates:.1%}", f"{row.by_a_mutant / row.candidates:.1%}",
        )  # fmt: skip
    console.print(table)


@shop.command("create")
def shop_create(
    database: Annotated[str, typer.Option(help="postgresql://user@host/name of the database.")],
    schema: Schema = "shop",
    seed: Annotated[int, typer.Option(help="Which generated shop.")] = 1,
) -> None:
    """Make a generated shop in a schema of a PostgreSQL database, for `serve` and `mcp --database`."""
    from stateset_agents.jobs.shops import postgres_shop
    from stateset_agents.tools.shop.generate import generate

    made = postgres_shop(database, schema)
    try:
        made.migrate()
        made.load(generate(seed, "train"))
        counts = {
            table: made.the(f"SELECT COUNT(*) AS n FROM {table}")["n"]
            for table in ("customers", "products", "orders")
        }
    finally:
        made.close()
    rows = ", ".join(f"{count} {table}" for table, count in counts.items())
    print(f"{rows} in schema {schema!r}")


@shop.command("sell")
def shop_sell(
    days: Annotated[int, typer.Option(help="Days that pass.", min=1)] = 30,
    seed: Annotated[int, typer.Option(help="Which generated shop.")] = 1,
    market: Annotated[int, typer.Option(help="Seed of the demand.")] = 1,
    visits: Annotated[int, typer.Option(help="Visitors a day.", min=1)] = 40,
    price: Annotated[
        list[str] | None, typer.Option(help="SKU=12.50: another price; can be given several times.")
    ] = None,
) -> None:
    """Let simulated customers buy for some days, to see the effect of prices."""
    from stateset_agents.errors import BadInput
    from stateset_agents.tools.scenarios.demand import Market
    from stateset_agents.tools.shop.generate import generate
    from stateset_agents.tools.shop.money import cents, show

    made = generate(seed, "train").clone()
    demand = Market(made, seed=market, visits=visits)
    for change in price or []:
        sku, _, amount = change.partition("=")
        if sku not in demand.list_price:
            known = ", ".join(sorted(demand.list_price))
            raise BadInput(f"--price: expected SKU=12.50 with one of {known}, found {change!r}.")
        made.run(
            "UPDATE products SET price = ?, waived_by = 'you' WHERE sku = ?", cents(amount), sku
        )
    sold = demand.run(made, days=days)
    for name, value in {
        "visits": f"{sold.visits:,}",
        "orders": f"{sold.orders:,} ({sold.conversion:.1%} of visits, {sold.attach_rate:.0%} with a second product)",
        "revenue": show(sold.revenue),
        "margin": show(sold.margin),
        "order value": show(round(sold.order_value)),
        "a customer": f"{show(round(sold.lifetime_value))} of margin in {days} days",
        "lost": f"{sold.lost} visitors, to an empty shelf",
        "stock": f"{sold.stock_age:.0f} days old on average",
    }.items():
        print(f"{name:<12} {value}")


@rules.command("check")
def rules_check(file: Path) -> None:
    """Check a YAML file of rules; each problem with its line."""
    from stateset_agents.tools.rules import problems
    from stateset_agents.tools.toolset import SIGNATURES

    refused = problems(file.read_text(encoding="utf-8"), tools=SIGNATURES)
    for line, reason in refused:
        print(f"{file}:{line}: {reason}")
    if not refused:
        print(f"{file}: no problems")
    raise typer.Exit(2 if refused else 0)


@rules.command("show")
def rules_show(
    file: Annotated[
        Path | None, typer.Argument(help="YAML file of rules; default: the shop's own.")
    ] = None,
) -> None:
    """The rules as they stand in the prompt, and cases that trigger each of them."""
    from stateset_agents.tools.scenarios.near_misses import near_misses
    from stateset_agents.tools.shop.calendar import NOT_DELIVERED

    for rule in rules_from(file):
        print(f"{rule.id} (version {rule.version}): {rule.prompt}")
        for situation in near_misses(rule):
            facts = [f"{k} is {v!r}" for k, v in situation.items() if v != NOT_DELIVERED]
            print("    denied when " + " and ".join(facts))
