-- requires 0006
-- What searches see, as a set of random values: two snapshots with the same set show the same documents, so that an answer of
-- one holds for the other. Each transaction that changes documents replaces one value. Transactions side by side replace
-- different ones, or add one, so that none waits for another; the set has as many values as there were ever at a time. A
-- counter in one row would make all commits wait for each other, and one outside of transactions would be ahead of them.
CREATE TABLE memory_versions (
  slot    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  version uuid NOT NULL DEFAULT gen_random_uuid()
);

-- A trigger, so that it holds for every writer: also for the build before this one, which knows nothing of it.
-- OR REPLACE: `apex restore` drops the tables of an empty installation, and functions stay.
CREATE OR REPLACE FUNCTION memory_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE memory_versions SET version = gen_random_uuid()
  WHERE slot = (SELECT slot FROM memory_versions FOR UPDATE SKIP LOCKED LIMIT 1);
  IF NOT FOUND THEN
    INSERT INTO memory_versions DEFAULT VALUES;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER memory_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON documents
  FOR EACH STATEMENT EXECUTE FUNCTION memory_changed();
