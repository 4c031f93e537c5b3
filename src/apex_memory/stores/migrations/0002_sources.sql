-- What pulled sources need: their state, what is still to be fetched, files, readings and their windows, secrets.

CREATE INDEX inbox_source ON inbox (source, seq DESC);

-- What operators decide of a source, and how its last pull went. No row means: enabled, never pulled.
CREATE TABLE sources (
  name          text PRIMARY KEY,
  enabled       boolean NOT NULL DEFAULT true,
  paused        boolean NOT NULL DEFAULT false,
  changed_by    text NOT NULL DEFAULT '',
  changed_at    timestamptz NOT NULL DEFAULT now(),
  pulled_at     timestamptz,   -- the end of the last pull that ended well
  error         text,          -- of the last pull, if it failed
  error_at      timestamptz
);

-- Things a vendor said had changed, until they are fetched. `noted_at` tells a nudge from a later one for the same thing.
CREATE TABLE nudges (
  source    text NOT NULL,
  key       text COLLATE "C" NOT NULL,
  at        timestamptz,
  noted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (source, key)
);
CREATE INDEX nudges_oldest ON nudges (source, noted_at);

-- Files of batch sources, by content: the same file again is the same row.
CREATE TABLE files (
  id          uuid PRIMARY KEY,
  source      text NOT NULL,
  name        text NOT NULL,
  sha256      bytea NOT NULL,
  body        bytea NOT NULL,
  received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  events      integer,           -- how many the file holds, once it is unpacked
  landed      integer NOT NULL DEFAULT 0,
  findings    text[] NOT NULL DEFAULT '{}',
  replies     text[] NOT NULL DEFAULT '{}',
  ended_at    timestamptz
);
CREATE INDEX files_open ON files (source, received_at) WHERE ended_at IS NULL;
CREATE INDEX files_recent ON files (received_at DESC);

-- Raw readings of streams, a partition a day (made when the first reading of the day comes, dropped by retention).
CREATE TABLE readings (
  source      text NOT NULL,
  series      text COLLATE "C" NOT NULL,
  kind        text NOT NULL,
  at          timestamptz NOT NULL,
  value       jsonb NOT NULL,
  PRIMARY KEY (source, series, at, kind)
) PARTITION BY RANGE (at);

-- Which windows of a series have readings that memory does not hold yet, and since which version it does.
CREATE TABLE windows (
  source   text NOT NULL,
  series   text COLLATE "C" NOT NULL,
  start    timestamptz NOT NULL,
  version  bigint NOT NULL DEFAULT 0,
  dirty    boolean NOT NULL DEFAULT true,
  due_at   timestamptz NOT NULL,
  PRIMARY KEY (source, series, start)
);
CREATE INDEX windows_due ON windows (source, due_at) WHERE dirty;

CREATE TABLE backfills (
  id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  source      text NOT NULL,
  kind        text NOT NULL CHECK (kind IN ('backfill', 'replay')),
  since       timestamptz NOT NULL,
  until       timestamptz NOT NULL,
  state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'failed', 'cancelled')),
  position    jsonb NOT NULL DEFAULT '{}',
  landed      bigint NOT NULL DEFAULT 0,
  seen        bigint NOT NULL DEFAULT 0,
  error       text,
  actor       text NOT NULL,
  started_at  timestamptz NOT NULL DEFAULT now(),
  ended_at    timestamptz
);
CREATE INDEX backfills_running ON backfills (source) WHERE state = 'running';
CREATE INDEX backfills_recent ON backfills (started_at DESC);

-- Secrets and tokens, sealed (AES-256-GCM) under the key named by `key_id`, which is not in this database.
CREATE TABLE secrets (
  name       text PRIMARY KEY,
  key_id     text NOT NULL,
  sealed     bytea NOT NULL,
  changed_by text NOT NULL DEFAULT '',
  changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The record of an entity (`about`), so that what waits for it can be told.
ALTER TABLE manifests ADD COLUMN about text;
ALTER TABLE documents ADD COLUMN about text;
CREATE INDEX documents_about ON documents (about) WHERE about IS NOT NULL AND NOT deleted;
