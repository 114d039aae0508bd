"""Tools about what is for sale: find it, describe it, compare it, what goes with it."""

import json
import re
from typing import Any

from stateset_agents.tools.commerce.inventory import find_product
from stateset_agents.tools.shop.embedding_search import fused
from stateset_agents.tools.shop.money import cents, show
from stateset_agents.tools.tool import Arguments, Desk, Money, Tool, ToolError, Word

MAX_HITS = 5
"""Products that a search shows."""


class Query(Arguments):
    query: Word


class Sku(Arguments):
    sku: Word


class Skus(Arguments):
    skus: list[Word]


class Wish(Arguments):
    sku: Word
    budget: Money


class Pair(Arguments):
    sku: Word
    other_sku: Word


def search_products(desk: Desk, call: Query) -> dict[str, Any]:
    wanted = set(re.findall(r"\w+", call.query.lower()))
    scored = [
        (-len(wanted & set(row["item"].lower().split())), row["sku"], row["item"])
        for row in desk.shop.all("SELECT sku, item FROM products")
    ]
    hits = sorted(hit for hit in scored if hit[0] < 0)[:2]
    return {"found": [f"{sku} {item}" for _, sku, item in hits]}


def find_products(desk: Desk, call: Query) -> dict[str, Any]:
    """By words of the name, the category and the attributes, stemmed, best first; by meaning as well where the
    shop was given a model for it."""
    hits = desk.shop.search(call.query, limit=MAX_HITS)
    if desk.shop.meaning is not None:
        texts = {
            row["sku"]: row["words"] for row in desk.shop.all("SELECT sku, words FROM catalogue")
        }
        hits = fused(hits, desk.shop.meaning.rank(call.query, texts)[:MAX_HITS])[:MAX_HITS]
    products = [find_product(desk.shop, sku) for sku in hits]
    return {"found": [f"{row['sku']} {row['item']} {show(row['price'])}" for row in products]}


def get_product(desk: Desk, call: Sku) -> dict[str, Any]:
    product = find_product(desk.shop, call.sku)
    about = desk.shop.the("SELECT attributes FROM products WHERE sku = ?", call.sku)
    reviews = desk.shop.all("SELECT stars, words FROM reviews WHERE sku = ? ORDER BY id", call.sku)
    return {
        "item": product["item"],
        "price": show(product["price"]),
        **json.loads(about["attributes"]),
        "customers_wrote": [fenced(f"{row['stars']} stars: {row['words']}") for row in reviews],
    }


def fenced(text: str) -> str:
    """Other people's words, marked as such: they are data and instruct nobody."""
    return f"<<{text.replace('<<', '').replace('>>', '')[:300]}>>"


def compare(desk: Desk, call: Skus) -> dict[str, Any]:
    if not 2 <= len(call.skus) <= 4:
        raise ToolError("bad_skus", "from 2 to 4 products")
    answer: dict[str, Any] = {}
    for sku in call.skus:
        product = find_product(desk.shop, sku)
        about = desk.shop.the("SELECT attributes FROM products WHERE sku = ?", sku)
        answer[sku] = {"item": product["item"], "price": show(product["price"])} | json.loads(
            about["attributes"]
        )
    return answer


def recommend(desk: Desk, call: Wish) -> dict[str, Any]:
    """What goes with a product, is in stock and within the budget."""
    find_product(desk.shop, call.sku)
    rows = desk.shop.all(
        "SELECT fits, item, price FROM compatibility JOIN products ON products.sku = fits "
        "WHERE compatibility.sku = ? AND price <= ? AND (SELECT SUM(on_hand - reserved) FROM stock "
        "WHERE stock.sku = fits) > 0 ORDER BY price DESC, fits LIMIT 3",
        call.sku, cents(call.budget),
    )  # fmt: skip
    return {"fits": [f"{row['fits']} {row['item']} {show(row['price'])}" for row in rows]}


def check_compatibility(desk: Desk, call: Pair) -> dict[str, Any]:
    find_product(desk.shop, call.sku)
    find_product(desk.shop, call.other_sku)
    row = desk.shop.first(
        "SELECT sku FROM compatibility WHERE (sku = ? AND fits = ?) OR (sku = ? AND fits = ?)",
        call.sku, call.other_sku, call.other_sku, call.sku,
    )  # fmt: skip
    return {"compatible": row is not None}


TOOLS = (
    Tool(
        name="search_products",
        description="Products by words.",
        arguments=Query,
        run=search_products,
    ),
    Tool(
        name="find_products",
        description="Products by words of name, category, material and size, best first.",
        arguments=Query,
        run=find_products,
    ),
    Tool(
        name="get_product",
        description="Name, price, attributes and reviews of a product.",
        arguments=Sku,
        run=get_product,
    ),
    Tool(
        name="compare",
        description="Products side by side.",
        arguments=Skus,
        run=compare,
    ),
    Tool(
        name="recommend",
        description="What goes with a product within a budget.",
        arguments=Wish,
        run=recommend,
    ),
    Tool(
        name="check_compatibility",
        description="Whether two products go together.",
        arguments=Pair,
        run=check_compatibility,
    ),
)
