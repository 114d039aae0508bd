"""Inputs of commands: a file of rules, the shop, and a trace store."""

from pathlib import Path
from typing import Annotated, Any

import typer

Rules = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of rules: they replace the shop's own of the same id, and are added to the others."
    ),
]
Seed = Annotated[int, typer.Option(help="Which generated shop, where no database is given.")]
Database = Annotated[
    str | None, typer.Option(help="postgresql://… of a shop that `shop create` made.")
]
Meaning = Annotated[
    str | None,
    typer.Option(
        help="Embedding model (a folder, or a name on the hub) to search products by meaning."
    ),
]
Schema = Annotated[str, typer.Option(help="The shop's schema in that database.")]


def refuse(whose: str, **options: Any) -> None:
    """Raises BadInput for the first option that was given, since it is an option `whose` mode is another."""
    from stateset_agents.errors import BadInput

    for name, value in options.items():
        if value is not None:
            raise BadInput(f"--{name.replace('_', '-')}: an option {whose}.")


def rules_from(file: Path | None) -> Any:
    """The shop's rules; a file's rules replace those of the same id, and the others are added."""
    from stateset_agents.jobs.registry import rules_of
    from stateset_agents.tools.toolset import shop_rules

    return shop_rules() if file is None else rules_of(file)


def shop_from(database: str | None, schema: str, seed: int, meaning: str | None = None) -> Any:
    """The shop in a database, or a generated one in memory."""
    from stateset_agents.jobs.shops import stored_shop

    shop = _generated(seed) if database is None else stored_shop(database, schema)
    if meaning is not None:
        from stateset_agents.tools.shop.embedding_search import Meaning

        shop.meaning = Meaning(meaning)
    return shop


def _generated(seed: int) -> Any:
    from stateset_agents.tools.shop.generate import generate

    return generate(seed, "train").clone()


def customer_of(graph: str, seed: int) -> Any:
    """A generated customer of one of the shop's graphs: the scenario, and its shop."""
    import itertools

    from stateset_agents.tools.scenarios.generator import intents_of, scenarios
    from stateset_agents.tools.shop.arrange import arrange_all
    from stateset_agents.tools.shop.generate import generate

    drawn = scenarios(seed=seed, split="development", intents=intents_of(graph))
    scenario = next(itertools.islice(drawn, seed % 5, None))
    shop = generate(scenario.shop_seed, "development").clone()
    arrange_all(shop, scenario.arranged)
    return scenario, shop


def open_store(place: str, *, create: bool = False) -> Any:
    """The trace store at a path, in a run's folder, or at a `postgresql://` URL."""
    from stateset_agents.traces.store import TraceStore

    folder = Path(place)
    if not place.startswith(("postgresql://", "postgres://")) and folder.is_dir():
        place = str(folder / "traces.db")
    return TraceStore(place, create=create)
