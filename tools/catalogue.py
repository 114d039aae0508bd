"""Tools about what is for sale: find it, price it, count it, take a promotion off."""

import re
from typing import Any

from stateset_agents.tools.money import percent_off, show
from stateset_agents.tools.shop import Row, Shop
from stateset_agents.tools.tool import Arguments, Session, Tool, ToolError


class Query(Arguments):
    query: str


class Sku(Arguments):
    sku: str


class Quote(Arguments):
    sku: str
    code: str = ""


class Code(Arguments):
    code: str


def _product(shop: Shop, sku: str) -> Row:
    found = shop.one(
        "SELECT sku, item, price, on_hand - reserved AS free FROM products JOIN stock USING(sku) "
        "WHERE sku = ?",
        sku,
    )
    if found is None:
        raise ToolError("no_such_sku", "use a sku of search_products")
    return found


def _promotion(shop: Shop, code: str) -> int | None:
    """Percent off, or None where the code is unknown or over."""
    found = shop.one(
        "SELECT percent FROM promotions WHERE code = ? AND until_day >= ?", code.upper(), shop.today
    )
    return int(found["percent"]) if found else None


def search_products(shop: Shop, session: Session, call: Query) -> dict[str, Any]:
    wanted = set(re.findall(r"\w+", call.query.lower()))
    scored = [
        (-len(wanted & set(row["item"].lower().split())), row["sku"], row["item"])
        for row in shop.all("SELECT sku, item FROM products")
    ]
    hits = sorted(hit for hit in scored if hit[0] < 0)[:2]
    return {"found": [f"{sku} {item}" for _, sku, item in hits]}


def get_product(shop: Shop, session: Session, call: Sku) -> dict[str, Any]:
    product = _product(shop, call.sku)
    return {"item": product["item"], "price": show(product["price"])}


def get_price(shop: Shop, session: Session, call: Sku) -> dict[str, Any]:
    return {"price": show(_product(shop, call.sku)["price"])}


def check_stock(shop: Shop, session: Session, call: Sku) -> dict[str, Any]:
    return {"in_stock": _product(shop, call.sku)["free"]}


def quote_cart(shop: Shop, session: Session, call: Quote) -> dict[str, Any]:
    product = _product(shop, call.sku)
    price = product["price"]
    answer: dict[str, Any] = {"price": show(price)}
    if call.code:
        percent = _promotion(shop, call.code)
        answer["code"] = "valid" if percent else "expired"
        price = percent_off(price, percent) if percent else price
    return {**answer, "total": show(price), "in_stock": product["free"]}


def validate_promotion(shop: Shop, session: Session, call: Code) -> dict[str, Any]:
    percent = _promotion(shop, call.code)
    return {"valid": True, "percent": percent} if percent else {"valid": False}


TOOLS = (
    Tool(
        name="search_products",
        description="Products by words.",
        arguments=Query,
        run=search_products,
    ),
    Tool(
        name="get_product",
        description="Name and price of a product.",
        arguments=Sku,
        run=get_product,
    ),
    Tool(name="get_price", description="Price of a product.", arguments=Sku, run=get_price),
    Tool(
        name="check_stock",
        description="Free units of a product.",
        arguments=Sku,
        run=check_stock,
    ),
    Tool(
        name="quote_cart",
        description="Price, total after a promotion code, and stock of a product.",
        arguments=Quote,
        run=quote_cart,
    ),
    Tool(
        name="validate_promotion",
        description="Whether a promotion code is valid today.",
        arguments=Code,
        run=validate_promotion,
    ),
)
