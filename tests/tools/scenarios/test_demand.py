"""Demand behind the shop: the best fixed price is known in closed form, and the market finds it."""

import math

import pytest

from stateset_agents.tools.scenarios.demand import Market, Sales
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.sqlite import Shop
from tests.invariants import broken


def a_shop(*, stock: int = 100_000) -> Shop:
    """A shop whose shelves do not run empty."""
    shop = generate(1, "train").clone()
    for row in shop.all("SELECT sku, warehouse FROM stock"):
        shop.run(
            "UPDATE stock SET on_hand = on_hand + ? WHERE sku = ? AND warehouse = ?",
            stock, row["sku"], row["warehouse"],
        )  # fmt: skip
        shop.insert(
            "movements", sku=row["sku"], warehouse=row["warehouse"], on_hand=stock, reserved=0, why="test"
        )  # fmt: skip
    return shop


def priced(sku: str, price: float) -> Shop:
    shop = a_shop()
    shop.run("UPDATE products SET price = ?, waived_by = 'test' WHERE sku = ?", round(price), sku)
    return shop


def margin_of(sku: str, shop: Shop) -> int:
    row = shop.the(
        "SELECT COALESCE(SUM(quantity * (unit_price - cost)), 0) AS cents FROM lines JOIN products USING(sku) "
        "WHERE sku = ? AND order_id LIKE 'N%'",
        sku,
    )
    return int(row["cents"])


def test_the_best_price_is_where_the_derivative_of_the_margin_is_zero() -> None:
    shop = a_shop()
    market = Market(shop, seed=1)
    for row in shop.all("SELECT sku, cost FROM products"):
        best = market.best_price(shop, row["sku"])

        def margin(price: float, sku: str = row["sku"], cost: int = row["cost"]) -> float:
            at = market.at_list * math.exp((market.list_price[sku] - price) / market.scale[sku])
            return (price - cost) * at

        assert margin(best) > max(margin(best * 0.97), margin(best * 1.03))


def test_the_market_finds_the_best_fixed_price() -> None:
    """The same visitors meet five prices of one product; the closed form's earns most."""
    sku = "P12"
    best = Market(a_shop(), seed=3).best_price(a_shop(), sku)
    earned = {}
    for factor in (0.6, 0.8, 1.0, 1.3, 1.7):
        market = Market(a_shop(), seed=3, visits=4000, at_list=0.2)
        shop = priced(sku, best * factor)
        market.run(shop, days=2)
        earned[factor] = margin_of(sku, shop)
    assert max(earned, key=lambda factor: earned[factor]) == 1.0, earned


def test_sales_are_real_orders_and_the_same_seed_sells_the_same() -> None:
    sold: list[Sales] = []
    for _ in range(2):
        shop = generate(2, "train").clone()
        today = shop.today
        sold.append(Market(shop, seed=5).run(shop, days=30))
        assert shop.today == today + 30
        assert broken(shop) == []
        revenue = shop.the(
            "SELECT SUM(paid) AS cents, COUNT(*) AS n FROM lines WHERE order_id LIKE 'N%'"
        )
        assert (sold[-1].revenue, sold[-1].units) == (revenue["cents"], revenue["n"])
    assert sold[0] == sold[1]
    assert 0 < sold[0].conversion < 0.2
    assert sold[0].orders > 0
    assert sold[0].lifetime_value > 0


def test_a_dearer_shop_sells_less_and_an_empty_shelf_loses() -> None:
    cheap, dear = a_shop(), a_shop()
    market = Market(cheap, seed=7, visits=200)
    dear.run("UPDATE products SET price = price * 2")
    few, many = market.run(dear, days=5), market.run(cheap, days=5)
    assert few.units < many.units
    assert many.lost == 0
    empty = generate(1, "train").clone()
    empty.run("UPDATE stock SET on_hand = reserved")
    gone = market.run(empty, days=5)
    assert (gone.orders, gone.revenue) == (0, 0)
    assert gone.lost > 0


def test_who_has_bought_comes_back_and_takes_something_along() -> None:
    shop = a_shop()
    sales = Market(shop, seed=9, visits=100, at_list=0.3).run(shop, days=40)
    assert sales.visits > 100 * 40
    assert 0.2 < sales.attach_rate < 0.3  # a quarter look, and at this demand all of them buy
    assert sales.order_value > 0


@pytest.mark.parametrize("days", [0, 60])
def test_stock_grows_old(days: int) -> None:
    shop = a_shop()
    before = Market(shop, seed=1, visits=0).run(shop, days=0).stock_age
    after = Market(shop, seed=1, visits=0).run(shop, days=days).stock_age
    assert after == pytest.approx(before + days)
