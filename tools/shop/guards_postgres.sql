-- What a constraint cannot say, for PostgreSQL. `for_update` on the order makes two payouts of one order
-- wait for each other, so that their sum is seen.
CREATE TABLE catalogue(sku TEXT PRIMARY KEY, words TEXT NOT NULL);
CREATE INDEX catalogue_words ON catalogue USING gin(to_tsvector('english', words));
CREATE FUNCTION paid_out_within_capture() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE captured BIGINT; paid_out BIGINT;
BEGIN
  PERFORM 1 FROM orders WHERE id = NEW.order_id FOR UPDATE;
  SELECT COALESCE(SUM(amount) FILTER (WHERE kind = 'capture'), 0),
         COALESCE(SUM(amount) FILTER (WHERE kind <> 'capture'), 0)
    INTO captured, paid_out FROM payments WHERE order_id = NEW.order_id;
  IF NEW.amount + paid_out > captured THEN
    RAISE EXCEPTION 'refunds exceed what was captured' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER paid_out_within_capture BEFORE INSERT ON payments FOR EACH ROW
  WHEN (NEW.kind <> 'capture') EXECUTE FUNCTION paid_out_within_capture();
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit FOR EACH ROW
  EXECUTE FUNCTION audit_is_append_only();
CREATE FUNCTION log_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE row_now JSONB; row_before JSONB; place TEXT;
BEGIN
  IF TG_OP <> 'INSERT' THEN row_before := to_jsonb(OLD); END IF;
  IF TG_OP <> 'DELETE' THEN row_now := to_jsonb(NEW); END IF;
  SELECT string_agg(COALESCE(row_now, row_before) ->> name, '/' ORDER BY number) INTO place
    FROM unnest(TG_ARGV) WITH ORDINALITY AS keys(name, number);
  INSERT INTO change_log(tab, key, before, after)
    VALUES (TG_TABLE_NAME, place, row_before::TEXT, row_now::TEXT);
  RETURN NULL;
END $$;
