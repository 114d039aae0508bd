"""What must hold in every shop at every moment, in SQL of its own: each query finds what is wrong."""

from stateset_agents.tools.shop.database import Database

BROKEN = {
    "stock is never negative and never oversold": (
        "SELECT sku FROM stock WHERE on_hand < 0 OR reserved < 0 OR reserved > on_hand"
    ),
    "the ledger of stock adds up to the counts": (
        "SELECT stock.sku FROM stock LEFT JOIN (SELECT sku, warehouse, SUM(on_hand) AS h, SUM(reserved) AS r "
        "FROM movements GROUP BY sku, warehouse) AS m ON m.sku = stock.sku AND m.warehouse = stock.warehouse "
        "WHERE on_hand <> COALESCE(h, 0) OR reserved <> COALESCE(r, 0)"
    ),
    "what is reserved is what orders and reservations hold": (
        "SELECT stock.sku FROM stock WHERE reserved <> "
        "(SELECT COALESCE(SUM(quantity), 0) FROM lines WHERE lines.sku = stock.sku AND "
        "lines.warehouse = stock.warehouse) + (SELECT COALESCE(SUM(quantity), 0) FROM reservations WHERE "
        "reservations.sku = stock.sku AND reservations.warehouse = stock.warehouse)"
    ),
    "no order pays out more than it captured": (
        "SELECT order_id FROM payments GROUP BY order_id HAVING SUM(CASE kind WHEN 'capture' THEN amount "
        "ELSE -amount END) < 0"
    ),
    "no line pays out more than was paid for it, and the payouts are what the line says": (
        "SELECT lines.order_id FROM lines JOIN orders ON orders.id = lines.order_id "
        "WHERE refunded > paid OR (status <> 'cancelled' AND refunded <> "
        "(SELECT COALESCE(SUM(amount), 0) FROM payments WHERE payments.order_id = lines.order_id AND "
        "payments.line = lines.line AND kind <> 'capture'))"
    ),
    "what comes back or is cancelled was bought": (
        "SELECT order_id FROM lines WHERE returned < 0 OR cancelled < 0 OR returned + cancelled > quantity"
    ),
    "returns are counted on their lines": (
        "SELECT lines.order_id FROM lines WHERE returned <> (SELECT COUNT(*) FROM returns WHERE "
        "returns.order_id = lines.order_id AND returns.line = lines.line)"
    ),
    "a price below its floor has somebody's name": (
        "SELECT sku FROM products WHERE price < floor AND waived_by IS NULL"
    ),
    "totals conserve to the cent": (
        "SELECT orders.id FROM orders WHERE shipping + (SELECT SUM(paid) FROM lines WHERE order_id = orders.id) "
        "<> (SELECT COALESCE(SUM(amount), 0) FROM payments WHERE order_id = orders.id AND kind = 'capture')"
    ),
    "a line is paid by quantity, price and discount": (
        "SELECT order_id FROM lines WHERE paid <> quantity * unit_price - discount OR tax > paid"
    ),
    "a code is used as often as it says": (
        "SELECT code FROM promotions WHERE uses <> (SELECT COUNT(*) FROM redemptions WHERE "
        "redemptions.code = promotions.code) OR uses > max_uses"
    ),
    "a cancelled order holds and owes nothing": (
        "SELECT orders.id FROM orders JOIN lines ON order_id = orders.id WHERE status = 'cancelled' AND "
        "(warehouse IS NOT NULL OR refunded <> paid OR cancelled <> quantity)"
    ),
    "one picture serves one claim": (
        "SELECT digest FROM claim_photos JOIN media ON media.id = media_id GROUP BY digest HAVING COUNT(*) > 1"
    ),
}


def broken(shop: Database) -> list[str]:
    """The invariants that do not hold."""
    return [name for name, query in BROKEN.items() if shop.all(query)]
