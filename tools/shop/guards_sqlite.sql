-- What a constraint cannot say, for SQLite.
CREATE VIRTUAL TABLE catalogue USING fts5(sku UNINDEXED, words, tokenize = 'porter unicode61');
CREATE TRIGGER paid_out_within_capture BEFORE INSERT ON payments WHEN NEW.kind <> 'capture' BEGIN
  SELECT RAISE(ABORT, 'refunds exceed what was captured') WHERE NEW.amount
    + (SELECT COALESCE(SUM(amount), 0) FROM payments WHERE order_id = NEW.order_id AND kind <> 'capture')
    > (SELECT COALESCE(SUM(amount), 0) FROM payments WHERE order_id = NEW.order_id AND kind = 'capture');
END;
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only'); END;
