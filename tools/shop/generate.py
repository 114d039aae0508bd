"""Generates shops from a seed: customers, a catalogue, stock, current and past orders."""

import functools
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stateset_agents.tools.shop.arrange import Arranged, arrange_all
from stateset_agents.tools.shop.calendar import TODAY
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.tools.shop.stock import move
from stateset_agents.tools.shop.tax import tax_in
from stateset_agents.tools.wording import Split
from stateset_agents.tools.wording.vocabulary import CARRIERS, name

WAREHOUSES = {"WE": "east", "WC": "central", "WW": "west"}
CATEGORIES = ("home", "kitchen", "garden", "office")
MATERIALS = ("oak", "steel", "wool", "glass", "linen")
LOCALES = (("en", "EUR"), ("en", "EUR"), ("de", "EUR"), ("es", "EUR"), ("fr", "EUR"), ("pt", "EUR"))
PRAISE = (
    "Does what it should.",
    "Nice colour, sturdy.",
    "Smaller than I thought.",
    "Bought a second one.",
)


@functools.lru_cache(maxsize=256)
def generate(seed: int, split: Split) -> Shop:
    """The shop of a seed: 12 customers, 16 products in 3 warehouses, 30 orders; the same seed gives the same bytes.

    Treat the result as a master copy: `clone()` it before anything is changed.
    """
    rng = random.Random(f"shop/{split}/{seed}")
    shop = Shop.empty()
    shop.run("BEGIN")
    shop.insert("meta", name="today", value=str(TODAY))
    shop.insert("meta", name="hour", value="10")
    free = _catalogue(shop, rng, split)
    _customers(shop, rng, split)
    codes: dict[str, None] = {}
    while len(codes) < 3:
        codes[name(rng, split, "code")] = None
    for code in codes:
        percent = rng.choice((10, 15, 20, 25))
        until = TODAY + rng.choice((-20, -5, 10, 30, 90))
        shop.insert("promotions", code=f"{code}{percent}", percent=percent, until_day=until)
    for number in rng.sample(range(1000, 10000), 30):
        _place(shop, rng, f"W{number}", split)
    # What came later draws from a stream of its own: the shops that policies were raised in stay as they are.
    _furnish(shop, random.Random(f"shop/more/{split}/{seed}"), split, free)
    shop.run("COMMIT")
    shop.log_changes()
    return shop


Shops = Callable[[int, Split], Shop]
"""Where a scenario's shop comes from: a master copy by seed and split, as `generate` makes it, or always the same one."""

_working: dict[Shop, Shop] = {}
"""The working copy of the last master copy."""


@contextmanager
def tried(master: Shop, arranged: Arranged | None = None) -> Iterator[Shop]:
    """A copy of a shop for a trial: every change is undone at the end.

    The working copy of the last shop is kept, because a new one would compile every statement again, which takes longer than
    running it. For one thread, and one user at a time.
    """
    shop = _working.pop(master, None)
    if shop is None:
        for other in _working.values():
            other.close()
        _working.clear()
        shop = master.clone()
    shop.run("BEGIN")
    try:
        arrange_all(shop, arranged or {})
        yield shop
    finally:
        shop.run("ROLLBACK")
        _working[master] = shop


def _catalogue(shop: Shop, rng: random.Random, split: Split) -> dict[str, int]:
    """Products, and how many of each are free to sell."""
    items: dict[str, None] = {}
    while len(items) < 16:
        items[f"{name(rng, split, 'adjective')} {name(rng, split, 'noun')}"] = None
    free = {}
    for number, item in enumerate(items):
        cost = rng.randint(300, 9000)
        sku = f"P{number + 10}"
        price = int(cost * rng.uniform(1.3, 2.2)) // 10 * 10
        shop.insert("products", sku=sku, item=item, price=max(price, cost), cost=cost)
        free[sku] = rng.choice((0, *range(5, 60)))
    return free


def _customers(shop: Shop, rng: random.Random, split: Split) -> None:
    for number in range(12):
        person = name(rng, split, "first")
        shop.insert(
            "customers", id=f"C{number}", name=person, email=f"{person.lower()}{number}@example.com",
            zip=f"{rng.randrange(100000):05d}", tier=rng.choice(("standard", "standard", "standard", "gold")),
        )  # fmt: skip


def _place(shop: Shop, rng: random.Random, order: str, split: Split) -> None:
    customer = rng.choice(shop.all("SELECT * FROM customers"))
    status = rng.choice(("pending", "shipped", "delivered", "delivered"))
    placed = TODAY - rng.randint(1, 3) if status == "pending" else TODAY - rng.randint(4, 70)
    shop.insert(
        "orders", id=order, customer_id=customer["id"], status=status, street=street(rng, split),
        zip=customer["zip"], placed_day=placed,
    )  # fmt: skip
    total = 0
    for number, product in enumerate(
        rng.sample(shop.all("SELECT * FROM products"), rng.randint(1, 3))
    ):
        total += product["price"]
        shop.insert(
            "lines", order_id=order, line=f"L{number + 1}", sku=product["sku"], quantity=1,
            paid=product["price"], unit_price=product["price"], tax=tax_in(product["price"]),
        )  # fmt: skip
    shop.insert(
        "payments", id=f"CAP-{order}", order_id=order, kind="capture", amount=total, day=placed
    )
    if status == "shipped":
        _ship(shop, order, rng.choice(CARRIERS), "in transit", TODAY + rng.randint(1, 12), None)
    elif status == "delivered":
        arrived = min(TODAY - 1, placed + rng.randint(2, 6))
        _ship(shop, order, rng.choice(CARRIERS), "delivered", arrived, arrived)


def _ship(shop: Shop, order: str, carrier: str, status: str, eta: int, arrived: int | None) -> None:
    shop.insert(
        "shipments", id=f"S-{order}", order_id=order, carrier=carrier, status=status, eta_day=eta,
        delivered_day=arrived,
    )  # fmt: skip


def _furnish(shop: Shop, rng: random.Random, split: Split, free: dict[str, int]) -> None:
    """The other tables of a shop: families, floor prices, warehouses, cards, photos, reviews."""
    for number in range(6):
        shop.insert("families", id=f"F{number}", category=CATEGORIES[number % len(CATEGORIES)])
    for id, region in WAREHOUSES.items():
        shop.insert("warehouses", id=id, region=region, cutoff_hour=rng.choice((9, 12, 16)))
    skus = list(free)
    for sku, count in free.items():
        product = shop.the("SELECT price, cost FROM products WHERE sku = ?", sku)
        attributes = {"material": rng.choice(MATERIALS), "width_cm": rng.randint(5, 200)}
        floor = min(product["price"], -(-product["cost"] * 11 // 10))
        shop.run(
            "UPDATE products SET family = ?, floor = ?, launched_day = ?, attributes = ? WHERE sku = ?",
            f"F{rng.randrange(6)}", floor, TODAY - rng.randint(5, 190), json.dumps(attributes), sku,
        )  # fmt: skip
        cut = sorted((rng.randint(0, count), rng.randint(0, count)))
        shares = (cut[0], cut[1] - cut[0], count - cut[1])
        for warehouse, share in zip(WAREHOUSES, shares, strict=True):
            shop.insert("stock", sku=sku, warehouse=warehouse, on_hand=0)
            move(shop, sku, warehouse, on_hand=share, why="count")
        if rng.random() < 0.5:
            shop.insert(
                "inbound", id=f"I-{sku}", sku=sku, warehouse=rng.choice(list(WAREHOUSES)),
                quantity=rng.randint(5, 40), eta_day=TODAY + rng.randint(2, 20),
            )  # fmt: skip
        for other in rng.sample(skus, 2):
            if other != sku:
                shop.insert("compatibility", sku=sku, fits=other)
        shop.insert(
            "reviews", id=f"V-{sku}", sku=sku, stars=rng.randint(2, 5), words=rng.choice(PRAISE)
        )
    for row in shop.all(
        "SELECT sku, item, category, attributes FROM products JOIN families ON families.id = family ORDER BY sku"
    ):
        about = " ".join(str(value) for value in json.loads(row["attributes"]).values())
        shop.insert("catalogue", sku=row["sku"], words=f"{row['item']} {row['category']} {about}")
    for row in shop.all(
        "SELECT line, order_id, sku FROM lines JOIN orders ON order_id = id WHERE status = 'pending' "
        "ORDER BY order_id, line"
    ):
        warehouse = rng.choice(list(WAREHOUSES))
        move(shop, row["sku"], warehouse, on_hand=1, reserved=1, why=f"order {row['order_id']}")
        shop.run(
            "UPDATE lines SET warehouse = ? WHERE order_id = ? AND line = ?",
            warehouse, row["order_id"], row["line"],
        )  # fmt: skip
    for customer in shop.all("SELECT id FROM customers ORDER BY id"):
        locale, currency = rng.choice(LOCALES)
        shop.run(
            "UPDATE customers SET street = ?, locale = ?, currency = ?, marketing = ?, joined_day = ? "
            "WHERE id = ?",
            street(rng, split), locale, currency, rng.randrange(2), TODAY - rng.randint(80, 900),
            customer["id"],
        )  # fmt: skip
        shop.insert(
            "instruments", id=f"K-{customer['id']}", customer_id=customer["id"], kind="card",
            token=f"tok_{rng.getrandbits(48):012x}", last4=f"{rng.randrange(10000):04d}",
        )  # fmt: skip
        if rng.random() < 0.25:
            shop.insert(
                "signals", id=f"G-{customer['id']}", customer_id=customer["id"],
                kind=rng.choice(("many_refunds", "new_device", "address_mismatch")),
                score=rng.randint(10, 90), day=TODAY - rng.randint(1, 30),
            )  # fmt: skip
    for row in shop.all(
        "SELECT order_id, line, sku, customer_id FROM lines JOIN orders ON order_id = id "
        "WHERE status = 'delivered' ORDER BY order_id, line"
    ):
        if rng.random() < 0.5:
            shown = row["sku"] if rng.random() < 0.7 else rng.choice(skus)
            shop.insert(
                "media", id=f"M-{row['order_id']}-{row['line']}", customer_id=row["customer_id"],
                digest=f"{rng.getrandbits(64):016x}", shows=shown, day=TODAY - rng.randint(0, 3),
            )  # fmt: skip


def street(rng: random.Random, split: Split) -> str:
    """A made-up street line, such as '12 Birch Road'."""
    return f"{rng.randint(1, 99)} {name(rng, split, 'street')} {name(rng, split, 'street_kind')}"
