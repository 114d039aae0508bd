"""Search by word: stemmed, over name, category and attributes, alike on both databases."""

import json
from typing import Any

import pytest

from stateset_agents.tools.database import Database
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS
from stateset_agents.tools.world import generate


@pytest.fixture(params=["sqlite", "postgres"])
def shop(request: pytest.FixtureRequest) -> Any:
    if request.param == "sqlite":
        return generate(1, "train").clone()
    return request.getfixturevalue("postgres_shop")


def test_a_product_is_found_by_its_name_first(shop: Database) -> None:
    for product in shop.all("SELECT sku, item FROM products ORDER BY sku"):
        assert shop.search(product["item"], limit=3)[0] == product["sku"]


def test_words_are_stemmed_and_unknown_ones_do_not_hide(shop: Database) -> None:
    product = shop.the("SELECT sku, item FROM products ORDER BY sku")
    word = product["item"].split()[1]
    assert product["sku"] in shop.search(f"{word}s please", limit=16)


def test_category_and_material_count(shop: Database) -> None:
    rows = shop.all(
        "SELECT sku, category, attributes FROM products JOIN families ON families.id = family"
    )
    for row in rows[:4]:
        material = json.loads(row["attributes"])["material"]
        assert row["sku"] in shop.search(f"{material} {row['category']}", limit=16)


@pytest.mark.parametrize(
    "query", ["", "???", '" OR 1', "a:b & c", "NEAR(x y)", "\u00fcber*", "'; --"]
)
def test_no_query_breaks_the_search(shop: Database, query: str) -> None:
    outcome = Executor(shop, ALL_TOOLS).propose(
        Session(customer=""), "find_products", {"query": query}
    )
    assert outcome.status == "done"
