-- requires 0006
-- Sealed raw payloads (setting `seal_payloads`). A payload is sealed under a data key, and each data key under a key of the
-- installation, so that a new key of the installation seals a few data keys again and no payload.
CREATE TABLE data_keys (
  id         uuid PRIMARY KEY,
  key_id     text NOT NULL,             -- the key of the installation under which it is sealed
  sealed     bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- NULL: `body` is the payload itself. No foreign key: landing looks once a statement whether the data keys are there, which
-- a foreign key does once a row, and no data key is ever deleted.
ALTER TABLE payloads ADD COLUMN data_key uuid;
