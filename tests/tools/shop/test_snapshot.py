"""A copy of a shop in PostgreSQL: the same rows, the same acts with the same changes, and the database is only read."""

from pathlib import Path

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.jobs.config import JobConfig, check_config
from stateset_agents.jobs.registry import find_rollout
from stateset_agents.jobs.scenario_sets import find_scenarios
from stateset_agents.jobs.shops import check_unchanged, shops_of, stored_shop
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.postgres import PostgresShop
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS
from stateset_agents.trace import Sampling

TABLES = ("customers", "orders", "lines", "stock", "shipment_events", "counters", "catalogue")


def test_a_copy_has_the_same_rows_and_counts_its_own_changes(postgres_shop: PostgresShop) -> None:
    copied, made = postgres_shop.snapshot(), generate(1, "train")
    for table in TABLES:
        assert sorted(map(str, copied.all(f"SELECT * FROM {table}"))) == sorted(
            map(str, made.all(f"SELECT * FROM {table}"))
        )
    assert copied.changes() == ()
    clones = [shop.clone() for shop in (copied, made)]
    order = made.the("SELECT id FROM orders WHERE status = 'pending' ORDER BY id")["id"]
    customer = made.the("SELECT customer_id FROM orders WHERE id = ?", order)["customer_id"]
    for shop in clones:
        outcome = Executor(shop, ALL_TOOLS).commit(
            Session(customer=customer), "cancel_order", {"order_id": order}, confirmed=True, key="k"
        )
        assert outcome.status == "done"
    assert clones[0].changes() == clones[1].changes() != ()
    assert clones[0].search("oak", limit=5) == clones[1].search("oak", limit=5)
    assert postgres_shop.the("SELECT status FROM orders WHERE id = ?", order)["status"] == "pending"


async def test_a_job_plays_in_copies_of_the_database(
    postgres_shop: PostgresShop, postgres_url: str, tmp_path: Path
) -> None:
    order = postgres_shop.the("SELECT id FROM orders WHERE status = 'pending' ORDER BY id")["id"]
    postgres_shop.run(
        "UPDATE orders SET status = 'cancelled' WHERE id = ?", order
    )  # not as generated
    config = check_config(
        {"database": postgres_url, "database_schema": postgres_shop.schema, "steps": 1, "groups": 5, "held_out": 5}
    )  # fmt: skip
    assert (
        shops_of(config)(7, "train").the("SELECT status FROM orders WHERE id = ?", order)["status"]
        == "cancelled"
    )
    training, held_out = find_scenarios(config)
    rollout = find_rollout(config)
    for scenario in (*training, *held_out):
        trace = await rollout(scenario, Oracle(plan=scenario.plan), Sampling())
        assert trace.goal_score is not None
        assert trace.goal_score.success, scenario.id
        known = scenario.customer.slots.get("order_id")
        assert known is None or postgres_shop.first("SELECT id FROM orders WHERE id = ?", known)
    check_unchanged(config, tmp_path)
    check_unchanged(config, tmp_path)
    (tmp_path / "shop.sha256").write_text("another")
    with pytest.raises(BadInput, match="changed since"):
        check_unchanged(config, tmp_path)


def test_what_does_not_go_with_a_database_is_refused() -> None:
    assert shops_of(JobConfig()) is generate
    for fields, name in (
        ({"database_schema": "x"}, "--schema: used only"),
        ({"database": "postgresql://x", "graph": "a:b"}, "--database: for the shop's own"),
    ):
        with pytest.raises(BadInput, match=name):
            check_config(fields)
    with pytest.raises(BadInput, match="expected postgresql://"):
        shops_of(check_config({"database": "shop.db"}))


def test_a_database_is_only_read(postgres_shop: PostgresShop, postgres_url: str) -> None:
    def schemas() -> list[str]:
        return [
            row["nspname"]
            for row in postgres_shop.all("SELECT nspname FROM pg_namespace ORDER BY 1")
        ]

    before = schemas()
    for job in (shops_of, lambda config: stored_shop(postgres_url, config.database_schema)):
        with pytest.raises(BadInput, match="found none"):
            job(check_config({"database": postgres_url, "database_schema": "shpo"}))
    assert schemas() == before
    reader = f"reader_{postgres_shop.schema}"
    postgres_shop.run(f"CREATE ROLE {reader} LOGIN")
    postgres_shop.run(f"GRANT USAGE ON SCHEMA {postgres_shop.schema} TO {reader}")
    url = postgres_url.replace("stateset@", f"{reader}@")
    denied = PostgresShop(url, schema=postgres_shop.schema)
    with pytest.raises(BadInput, match="permission denied"):
        denied.check()
    denied.close()
    postgres_shop.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA {postgres_shop.schema} TO {reader}")
    allowed = PostgresShop(url, schema=postgres_shop.schema)
    assert allowed.snapshot().changes() == ()
    allowed.close()


def test_rows_that_moved_in_the_database_make_the_same_copy(postgres_shop: PostgresShop) -> None:
    before = postgres_shop.snapshot().connection.serialize()
    postgres_shop.run("UPDATE orders SET status = status")
    assert postgres_shop.snapshot().connection.serialize() == before
