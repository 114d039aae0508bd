"""Customers who buy: the effect of prices, codes and empty shelves on revenue, margin and stock.

Each day `visits` people look at a product i, chosen in proportion to its freshness exp(-age_i / TAU). One who looks buys
with probability

    conversion_i(p) = min(1, K_i * exp(-p / s_i)),      K_i such that conversion at the list price is `at_list`

so units a day fall by one part in e for every s_i of price, the elasticity at the list price is p0_i / s_i (1.5 to 3.5, by seed),
and the expected margin (p - c_i) * conversion_i(p) is greatest at

    p*_i = c_i + s_i                                    (set its derivative, conversion * (1 - (p - c) / s), to 0)

Further: who finds the shelf empty looks at another product of the family with probability SWITCH; who has bought
looks at something compatible with probability BASKET; who has bought comes back once more with probability AGAIN,
within MONTH days. Every draw is seeded by the visit, not by what happened before: two prices meet the same visitors.
"""

import math
import random
from collections import defaultdict
from dataclasses import dataclass

from stateset_agents.tools.commerce.checkout import Priced, PricedLine, shipping_price, store
from stateset_agents.tools.shop.database import Database, Row
from stateset_agents.tools.tool import Desk, Session, ToolError

TAU = 180.0
SWITCH, BASKET, AGAIN, MONTH = 0.5, 0.25, 0.3, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sales:
    """The result of some days. Money in minor units."""

    days: int
    visits: int
    orders: int
    units: int
    revenue: int
    margin: int
    attached: int
    """Orders with a second product."""
    lost: int
    """Visitors who wanted to buy but found the product out of stock."""
    by_customer: dict[str, int]
    """Margin of each customer over the days."""
    stock_age: float
    """Days since launch of a unit on the shelf, on average, at the end."""

    @property
    def conversion(self) -> float:
        return self.orders / self.visits if self.visits else 0.0

    @property
    def order_value(self) -> float:
        return self.revenue / self.orders if self.orders else 0.0

    @property
    def attach_rate(self) -> float:
        return self.attached / self.orders if self.orders else 0.0

    @property
    def lifetime_value(self) -> float:
        """Margin of a customer who bought at all."""
        return sum(self.by_customer.values()) / len(self.by_customer) if self.by_customer else 0.0


class Market:
    """The demand of a shop. The shop's initial prices are the list prices."""

    def __init__(
        self, shop: Database, *, seed: int, visits: int = 40, at_list: float = 0.05
    ) -> None:
        self.seed = seed
        self.visits = visits
        self.at_list = at_list
        self.list_price = {
            r["sku"]: int(r["price"]) for r in shop.all("SELECT sku, price FROM products")
        }
        self.scale = {
            sku: price / random.Random(f"market/{seed}/{sku}").uniform(1.5, 3.5)
            for sku, price in self.list_price.items()
        }
        """s_i: the fall in price that multiplies demand by e, in minor units."""

    def conversion(self, sku: str, price: int) -> float:
        """The probability that a visitor buys at this price."""
        return min(1.0, self.at_list * math.exp((self.list_price[sku] - price) / self.scale[sku]))

    def best_price(self, shop: Database, sku: str) -> float:
        """The fixed price with the greatest expected margin: cost plus scale."""
        cost = shop.the("SELECT cost FROM products WHERE sku = ?", sku)["cost"]
        return float(cost) + self.scale[sku]

    def run(self, shop: Database, *, days: int) -> Sales:
        """Simulate visitors for some days. Orders are real: stock, money and the clock change."""
        customers = [r["id"] for r in shop.all("SELECT id FROM customers ORDER BY id")]
        margins: dict[str, int] = defaultdict(int)
        returning: dict[int, list[tuple[str, str]]] = defaultdict(list)
        visits = orders = units = revenue = attached = lost = 0
        for _ in range(days):
            today = shop.today
            came = [(f"{today}/{n}", "") for n in range(self.visits)] + returning.pop(today, [])
            for visit, known in came:
                visits += 1
                rng = random.Random(f"visit/{self.seed}/{visit}")
                customer = known or rng.choice(customers)
                bought, missed = self._visit(shop, rng)
                lost += missed
                if not bought:
                    continue
                made = _order(shop, customer, bought)
                if made is None:
                    lost += 1
                    continue
                orders, units, attached = (
                    orders + 1,
                    units + len(bought),
                    attached + (len(bought) > 1),
                )
                revenue += made
                margins[customer] += sum(int(r["price"]) - int(r["cost"]) for r in bought)
                if not known and rng.random() < AGAIN:
                    returning[today + rng.randint(1, MONTH)].append((f"{visit}/again", customer))
            shop.advance(days=1)
        return Sales(
            days=days, visits=visits, orders=orders, units=units, revenue=revenue,
            margin=sum(margins.values()), attached=attached, lost=lost, by_customer=dict(margins),
            stock_age=_stock_age(shop),
        )  # fmt: skip

    def _visit(self, shop: Database, rng: random.Random) -> tuple[list[Row], bool]:
        """A visitor's products, and whether an empty shelf made them leave."""
        look, decide, other, more, second = (rng.random() for _ in range(5))
        rows = shop.all(
            "SELECT sku, price, cost, family, launched_day, (SELECT SUM(on_hand - reserved) FROM stock "
            "WHERE stock.sku = products.sku) AS free FROM products ORDER BY sku"
        )
        today = shop.today
        fresh = [math.exp(-(today - row["launched_day"]) / TAU) for row in rows]
        first = _chosen(rows, fresh, look)
        if decide >= self.conversion(first["sku"], first["price"]):
            return [], False
        if first["free"] < 1:
            family = [r for r in rows if r["family"] == first["family"] and r["free"] > 0]
            if other >= SWITCH or not family:
                return [], True
            first = _chosen(family, [1.0] * len(family), other / SWITCH)
        bought = [first]
        if more < BASKET:
            fits = {
                r["fits"]
                for r in shop.all("SELECT fits FROM compatibility WHERE sku = ?", first["sku"])
            }
            beside = [r for r in rows if r["sku"] in fits and r["free"] > 0]
            if beside:
                also = _chosen(beside, [1.0] * len(beside), more / BASKET)
                if second < 4 * self.conversion(also["sku"], also["price"]):
                    bought.append(also)
        return bought, False


def _chosen(rows: list[Row], weights: list[float], draw: float) -> Row:
    """The row at a share `draw` (0 to 1) of the weights."""
    at = draw * sum(weights)
    for row, weight in zip(rows, weights, strict=True):
        at -= weight
        if at < 0:
            return row
    return rows[-1]


def _order(shop: Database, customer: str, bought: list[Row]) -> int | None:
    """Place an order of one unit each; its total without shipping, or None if stock ran out."""
    lines = tuple(
        PricedLine(sku=r["sku"], quantity=1, unit_price=int(r["price"]), discount=0) for r in bought
    )
    priced = Priced(lines=lines, code="", discount=0)
    desk = Desk(shop=shop, session=Session(customer=customer), rules=())
    try:
        with shop.atomically():
            store(desk, priced, shipping=shipping_price(priced.total, "standard"))
    except ToolError:
        return None
    return priced.total


def _stock_age(shop: Database) -> float:
    row = shop.the(
        "SELECT COALESCE(SUM((on_hand - reserved) * (? - launched_day)), 0) AS days, "
        "COALESCE(SUM(on_hand - reserved), 0) AS units FROM stock JOIN products USING(sku)",
        shop.today,
    )
    return float(row["days"]) / float(row["units"]) if row["units"] else 0.0
