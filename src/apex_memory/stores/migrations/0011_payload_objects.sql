-- requires 0006
-- Large raw payloads in an object store (setting `payload_store`). A row exists before its object does, so that an
-- object to which nothing refers is found by a query, without listing the bucket.
CREATE TABLE payload_objects (
  name     text PRIMARY KEY,            -- of the object, below the prefix in the bucket
  digest   bytea NOT NULL UNIQUE,       -- HMAC of the payload's SHA-256 under the first key: equal payloads share an object
  key_id   text NOT NULL,               -- the key under which the object is sealed
  bytes    bigint NOT NULL,             -- of the payload
  check_at timestamptz                  -- when to look whether anything refers to it; NULL: something did at the last look
);
CREATE INDEX payload_objects_due ON payload_objects (check_at) WHERE check_at IS NOT NULL;

-- The payloads whose bytes are an object. Their `body` is empty.
CREATE TABLE payload_references (
  inbox_id uuid PRIMARY KEY REFERENCES payloads ON DELETE CASCADE,
  object   text NOT NULL REFERENCES payload_objects
);
CREATE INDEX payload_references_object ON payload_references (object);

-- Objects to remove. Their rows in `payload_objects` are gone, so nothing can refer to them again.
CREATE TABLE payload_removals (
  name   text PRIMARY KEY,
  due_at timestamptz NOT NULL DEFAULT clock_timestamp()  -- later for one that could not be removed
);
CREATE INDEX payload_removals_due ON payload_removals (due_at);

-- However a payload is removed, its object is looked at with the next pass of the collector.
-- OR REPLACE: `apex restore` drops the tables of an empty installation, and functions stay.
CREATE OR REPLACE FUNCTION payload_object_released() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- Not before the end of a claim: an event may be about to land.
  UPDATE payload_objects SET check_at = greatest(check_at, clock_timestamp()) WHERE name = OLD.object;
  RETURN NULL;
END $$;
CREATE TRIGGER payload_object_released AFTER DELETE ON payload_references
  FOR EACH ROW EXECUTE FUNCTION payload_object_released();
