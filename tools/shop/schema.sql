-- The shop's tables, as SQLite and PostgreSQL both read them. Money is integer minor units of the shop's
-- currency; days are days of a virtual calendar. Constraints hold whatever the tools do. SERIAL stands for
-- a key that counts up by itself.
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE customers(
  id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL UNIQUE, zip TEXT NOT NULL,
  tier TEXT NOT NULL CHECK(tier IN ('standard', 'gold')), street TEXT NOT NULL DEFAULT '',
  locale TEXT NOT NULL DEFAULT 'en', currency TEXT NOT NULL DEFAULT 'EUR',
  marketing INTEGER NOT NULL DEFAULT 0 CHECK(marketing IN (0, 1)), joined_day INTEGER NOT NULL DEFAULT 0);
CREATE TABLE instruments(
  id TEXT PRIMARY KEY, customer_id TEXT NOT NULL REFERENCES customers,
  kind TEXT NOT NULL CHECK(kind IN ('card', 'wallet', 'invoice')), token TEXT NOT NULL UNIQUE,
  last4 TEXT NOT NULL);
CREATE TABLE families(
  id TEXT PRIMARY KEY, category TEXT NOT NULL, returnable INTEGER NOT NULL DEFAULT 1);
CREATE TABLE products(
  sku TEXT PRIMARY KEY, item TEXT NOT NULL UNIQUE, price INTEGER NOT NULL CHECK(price > 0),
  cost INTEGER NOT NULL CHECK(cost > 0), family TEXT REFERENCES families,
  floor INTEGER NOT NULL DEFAULT 1 CHECK(floor > 0), launched_day INTEGER NOT NULL DEFAULT 0,
  attributes TEXT NOT NULL DEFAULT '{}', waived_by TEXT,
  CHECK(price >= floor OR waived_by IS NOT NULL));
CREATE TABLE compatibility(
  sku TEXT NOT NULL REFERENCES products, fits TEXT NOT NULL REFERENCES products, PRIMARY KEY(sku, fits));
CREATE TABLE reviews(
  id TEXT PRIMARY KEY, sku TEXT NOT NULL REFERENCES products, stars INTEGER NOT NULL CHECK(stars BETWEEN 1 AND 5),
  words TEXT NOT NULL);
CREATE TABLE warehouses(
  id TEXT PRIMARY KEY, region TEXT NOT NULL, cutoff_hour INTEGER NOT NULL CHECK(cutoff_hour BETWEEN 0 AND 24));
CREATE TABLE stock(
  sku TEXT NOT NULL REFERENCES products, warehouse TEXT NOT NULL REFERENCES warehouses,
  on_hand INTEGER NOT NULL CHECK(on_hand >= 0), reserved INTEGER NOT NULL DEFAULT 0 CHECK(reserved >= 0),
  PRIMARY KEY(sku, warehouse), CHECK(reserved <= on_hand));
CREATE TABLE movements(
  seq SERIAL, sku TEXT NOT NULL, warehouse TEXT NOT NULL, on_hand INTEGER NOT NULL, reserved INTEGER NOT NULL,
  why TEXT NOT NULL);
CREATE TABLE inbound(
  id TEXT PRIMARY KEY, sku TEXT NOT NULL REFERENCES products, warehouse TEXT NOT NULL REFERENCES warehouses,
  quantity INTEGER NOT NULL CHECK(quantity > 0), eta_day INTEGER NOT NULL);
CREATE TABLE promotions(
  code TEXT PRIMARY KEY, percent INTEGER NOT NULL CHECK(percent BETWEEN 1 AND 90),
  until_day INTEGER NOT NULL, from_day INTEGER NOT NULL DEFAULT 0, min_total INTEGER NOT NULL DEFAULT 0,
  max_uses INTEGER NOT NULL DEFAULT 1000, uses INTEGER NOT NULL DEFAULT 0 CHECK(uses >= 0),
  CHECK(uses <= max_uses), CHECK(from_day <= until_day));
CREATE TABLE orders(
  id TEXT PRIMARY KEY, customer_id TEXT NOT NULL REFERENCES customers,
  status TEXT NOT NULL CHECK(status IN ('pending', 'shipped', 'delivered', 'cancelled')),
  street TEXT NOT NULL, zip TEXT NOT NULL, hold TEXT, placed_day INTEGER NOT NULL,
  method TEXT NOT NULL DEFAULT 'standard' CHECK(method IN ('standard', 'express')),
  shipping INTEGER NOT NULL DEFAULT 0 CHECK(shipping >= 0), currency TEXT NOT NULL DEFAULT 'EUR');
CREATE TABLE lines(
  order_id TEXT NOT NULL REFERENCES orders, line TEXT NOT NULL, sku TEXT NOT NULL REFERENCES products,
  quantity INTEGER NOT NULL CHECK(quantity > 0), paid INTEGER NOT NULL CHECK(paid >= 0),
  refunded INTEGER NOT NULL DEFAULT 0 CHECK(refunded >= 0), returned INTEGER NOT NULL DEFAULT 0 CHECK(returned >= 0),
  cancelled INTEGER NOT NULL DEFAULT 0 CHECK(cancelled >= 0), unit_price INTEGER NOT NULL CHECK(unit_price > 0),
  discount INTEGER NOT NULL DEFAULT 0 CHECK(discount >= 0), tax INTEGER NOT NULL DEFAULT 0 CHECK(tax >= 0),
  warehouse TEXT REFERENCES warehouses,
  PRIMARY KEY(order_id, line), CHECK(refunded <= paid), CHECK(returned + cancelled <= quantity),
  CHECK(paid = quantity * unit_price - discount), CHECK(tax <= paid));
CREATE TABLE shipments(
  id TEXT PRIMARY KEY, order_id TEXT NOT NULL REFERENCES orders, carrier TEXT NOT NULL, status TEXT NOT NULL,
  eta_day INTEGER NOT NULL, delivered_day INTEGER);
CREATE TABLE shipment_events(
  seq SERIAL, shipment_id TEXT NOT NULL REFERENCES shipments, day INTEGER NOT NULL, what TEXT NOT NULL);
CREATE TABLE parcels(
  id TEXT PRIMARY KEY, order_id TEXT NOT NULL, line TEXT NOT NULL, quantity INTEGER NOT NULL CHECK(quantity > 0),
  warehouse TEXT REFERENCES warehouses, day INTEGER NOT NULL,
  FOREIGN KEY(order_id, line) REFERENCES lines(order_id, line));
CREATE TABLE payments(
  id TEXT PRIMARY KEY, order_id TEXT NOT NULL REFERENCES orders,
  kind TEXT NOT NULL CHECK(kind IN ('capture', 'refund', 'credit', 'chargeback')), line TEXT,
  amount INTEGER NOT NULL CHECK(amount > 0), day INTEGER NOT NULL DEFAULT 0);
CREATE TABLE redemptions(
  code TEXT NOT NULL REFERENCES promotions, order_id TEXT NOT NULL REFERENCES orders,
  amount INTEGER NOT NULL CHECK(amount >= 0), PRIMARY KEY(code, order_id));
CREATE TABLE media(
  id TEXT PRIMARY KEY, customer_id TEXT NOT NULL REFERENCES customers, digest TEXT NOT NULL,
  shows TEXT NOT NULL, day INTEGER NOT NULL);
CREATE TABLE returns(
  id TEXT PRIMARY KEY, order_id TEXT NOT NULL REFERENCES orders, line TEXT NOT NULL, reason TEXT NOT NULL,
  quantity INTEGER NOT NULL DEFAULT 1 CHECK(quantity > 0),
  resolution TEXT NOT NULL DEFAULT 'refund' CHECK(resolution IN ('refund', 'exchange')),
  status TEXT NOT NULL DEFAULT 'open' CHECK(status IN ('open', 'received', 'closed')),
  FOREIGN KEY(order_id, line) REFERENCES lines(order_id, line));
CREATE TABLE claim_photos(
  media_id TEXT PRIMARY KEY REFERENCES media, order_id TEXT NOT NULL, line TEXT NOT NULL,
  FOREIGN KEY(order_id, line) REFERENCES lines(order_id, line));
CREATE TABLE reservations(
  id TEXT PRIMARY KEY, customer_id TEXT NOT NULL REFERENCES customers, sku TEXT NOT NULL REFERENCES products,
  warehouse TEXT NOT NULL REFERENCES warehouses, quantity INTEGER NOT NULL CHECK(quantity > 0),
  until_day INTEGER NOT NULL);
CREATE TABLE backorders(
  id TEXT PRIMARY KEY, order_id TEXT NOT NULL, line TEXT NOT NULL, eta_day INTEGER NOT NULL,
  UNIQUE(order_id, line), FOREIGN KEY(order_id, line) REFERENCES lines(order_id, line));
CREATE TABLE tickets(
  id TEXT PRIMARY KEY, customer_id TEXT REFERENCES customers, reason TEXT NOT NULL,
  kind TEXT NOT NULL DEFAULT 'escalation', order_id TEXT REFERENCES orders);
CREATE TABLE signals(
  id TEXT PRIMARY KEY, customer_id TEXT NOT NULL REFERENCES customers, order_id TEXT REFERENCES orders,
  kind TEXT NOT NULL, score INTEGER NOT NULL CHECK(score BETWEEN 0 AND 100), day INTEGER NOT NULL);
CREATE TABLE price_changes(
  id TEXT PRIMARY KEY, sku TEXT NOT NULL REFERENCES products, before INTEGER NOT NULL CHECK(before > 0),
  after INTEGER NOT NULL CHECK(after > 0), reason TEXT NOT NULL, day INTEGER NOT NULL);
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE idempotency(key TEXT PRIMARY KEY, call TEXT NOT NULL, result TEXT NOT NULL);
CREATE TABLE audit(
  seq SERIAL, tool TEXT NOT NULL, arguments TEXT NOT NULL,
  outcome TEXT NOT NULL CHECK(outcome IN ('done', 'denied', 'invalid', 'declined')),
  rule TEXT, hash TEXT NOT NULL);
CREATE TABLE outbox(seq SERIAL, topic TEXT NOT NULL, payload TEXT NOT NULL);
CREATE TABLE change_log(seq SERIAL, tab TEXT NOT NULL, key TEXT NOT NULL, before TEXT, after TEXT);
CREATE INDEX orders_of_customer ON orders(customer_id);
CREATE INDEX payments_of_order ON payments(order_id);
CREATE INDEX shipments_of_order ON shipments(order_id);
