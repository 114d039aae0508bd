-- The shop. Money is integer cents; constraints hold whatever the tools do.
PRAGMA foreign_keys = ON;
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE customers(
  id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL UNIQUE, zip TEXT NOT NULL,
  tier TEXT NOT NULL CHECK(tier IN ('standard', 'gold')));
CREATE TABLE products(
  sku TEXT PRIMARY KEY, item TEXT NOT NULL UNIQUE, price INTEGER NOT NULL CHECK(price > 0),
  cost INTEGER NOT NULL CHECK(cost > 0), CHECK(price >= cost));
CREATE TABLE stock(
  sku TEXT PRIMARY KEY REFERENCES products, on_hand INTEGER NOT NULL CHECK(on_hand >= 0),
  reserved INTEGER NOT NULL DEFAULT 0 CHECK(reserved >= 0), CHECK(reserved <= on_hand));
CREATE TABLE orders(
  id TEXT PRIMARY KEY, customer_id TEXT NOT NULL REFERENCES customers,
  status TEXT NOT NULL CHECK(status IN ('pending', 'shipped', 'delivered', 'cancelled')),
  street TEXT NOT NULL, zip TEXT NOT NULL, hold TEXT, placed_day INTEGER NOT NULL);
CREATE TABLE lines(
  order_id TEXT NOT NULL REFERENCES orders, line TEXT NOT NULL, sku TEXT NOT NULL REFERENCES products,
  quantity INTEGER NOT NULL CHECK(quantity > 0), paid INTEGER NOT NULL CHECK(paid >= 0),
  refunded INTEGER NOT NULL DEFAULT 0 CHECK(refunded >= 0), returned INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(order_id, line), CHECK(refunded <= paid), CHECK(returned BETWEEN 0 AND quantity));
CREATE TABLE shipments(
  order_id TEXT PRIMARY KEY REFERENCES orders, carrier TEXT NOT NULL, status TEXT NOT NULL,
  eta_day INTEGER NOT NULL, delivered_day INTEGER);
CREATE TABLE payments(
  id TEXT PRIMARY KEY, order_id TEXT NOT NULL REFERENCES orders,
  kind TEXT NOT NULL CHECK(kind IN ('capture', 'refund')), line TEXT,
  amount INTEGER NOT NULL CHECK(amount > 0));
CREATE TABLE returns(
  id TEXT PRIMARY KEY, order_id TEXT NOT NULL REFERENCES orders, line TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE promotions(
  code TEXT PRIMARY KEY, percent INTEGER NOT NULL CHECK(percent BETWEEN 1 AND 90),
  until_day INTEGER NOT NULL);
CREATE TABLE tickets(
  id TEXT PRIMARY KEY, customer_id TEXT REFERENCES customers, reason TEXT NOT NULL);
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE idempotency(key TEXT PRIMARY KEY, call TEXT NOT NULL, result TEXT NOT NULL);
CREATE TABLE audit(
  seq INTEGER PRIMARY KEY, tool TEXT NOT NULL, arguments TEXT NOT NULL,
  outcome TEXT NOT NULL CHECK(outcome IN ('done', 'denied', 'invalid', 'declined')),
  rule TEXT, hash TEXT NOT NULL);
CREATE TABLE change_log(
  seq INTEGER PRIMARY KEY, tab TEXT NOT NULL, key TEXT NOT NULL, before TEXT, after TEXT);

CREATE TRIGGER refund_within_capture BEFORE INSERT ON payments WHEN NEW.kind = 'refund' BEGIN
  SELECT RAISE(ABORT, 'refunds exceed what was captured') WHERE NEW.amount
    + (SELECT COALESCE(SUM(amount), 0) FROM payments WHERE order_id = NEW.order_id AND kind = 'refund')
    > (SELECT COALESCE(SUM(amount), 0) FROM payments WHERE order_id = NEW.order_id AND kind = 'capture');
END;
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only'); END;
