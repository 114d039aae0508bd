"""Stock by warehouse, and the ledger that every count must equal."""

from stateset_agents.tools.shop.database import Database

REGIONS = {
    "0": "east",
    "1": "east",
    "2": "east",
    "3": "east",
    "4": "central",
    "5": "central",
    "6": "central",
}
TRANSIT = {"standard": (2, 4), "express": (1, 2)}
"""Days of transport within a region, and between regions."""


def move(
    db: Database, sku: str, warehouse: str, *, on_hand: int = 0, reserved: int = 0, why: str
) -> None:
    """Change a count and write it into the ledger. The database refuses a negative count."""
    db.run(
        "UPDATE stock SET on_hand = on_hand + ?, reserved = reserved + ? WHERE sku = ? AND warehouse = ?",
        on_hand, reserved, sku, warehouse,
    )  # fmt: skip
    db.insert(
        "movements", sku=sku, warehouse=warehouse, on_hand=on_hand, reserved=reserved, why=why
    )


def region(zip: str) -> str:
    """Which part of the country a zip code lies in."""
    return REGIONS.get(zip[:1], "west")


def nearest(db: Database, sku: str, quantity: int, zip: str) -> str | None:
    """The warehouse with enough stock, the customer's region first; or None."""
    near = region(zip)
    row = db.first(
        "SELECT warehouse FROM stock JOIN warehouses ON warehouses.id = warehouse "
        "WHERE sku = ? AND on_hand - reserved >= ? ORDER BY CASE region WHEN ? THEN 0 ELSE 1 END, warehouse",
        sku, quantity, near,
    )  # fmt: skip
    return str(row["warehouse"]) if row else None


def delivery_day(db: Database, sku: str, zip: str, *, method: str = "standard") -> int | None:
    """The day on which one unit would arrive: from stock, else from inbound goods; None if neither."""
    near, (inside, across) = region(zip), TRANSIT[method]
    warehouse = nearest(db, sku, 1, zip)
    if warehouse is not None:
        place = db.the("SELECT region, cutoff_hour FROM warehouses WHERE id = ?", warehouse)
        leaves = db.today + (db.hour >= place["cutoff_hour"])
    else:
        inbound = db.first(
            "SELECT eta_day, region FROM inbound JOIN warehouses ON warehouses.id = warehouse "
            "WHERE sku = ? ORDER BY eta_day, inbound.id",
            sku,
        )
        if inbound is None:
            return None
        place, leaves = inbound, inbound["eta_day"]
    return int(leaves) + (inside if place["region"] == near else across)
