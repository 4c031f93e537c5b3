-- The authority: what came in, what was made of it, what readers see. docs/discussions/protocol.md explains each state.

CREATE TABLE installation (
  "only"     boolean PRIMARY KEY DEFAULT true CHECK ("only"),
  id         uuid NOT NULL DEFAULT gen_random_uuid(),
  embedder   text,
  dimension  integer,
  created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO installation DEFAULT VALUES;

-- One row an event. Narrow on purpose: it is the queue. `next_at` is when the row may be claimed:
-- now for a new one, the end of the lease for a claimed one, the time of the next try for a failed one.
CREATE TABLE inbox (
  id            uuid PRIMARY KEY,
  seq           bigint GENERATED ALWAYS AS IDENTITY,
  source        text NOT NULL,
  event_id      text COLLATE "C" NOT NULL,
  doc_id        uuid NOT NULL,
  doc_key       text NOT NULL,
  priority      smallint NOT NULL,
  version       bigint NOT NULL,
  occurred_at   timestamptz NOT NULL,
  received_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  content_type  text NOT NULL,
  trace_parent  text,
  state         text NOT NULL DEFAULT 'received'
                CHECK (state IN ('received', 'prepared', 'done', 'superseded', 'parked', 'dead')),
  open          boolean GENERATED ALWAYS AS (state IN ('received', 'prepared')) STORED,
  batch         uuid,
  next_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  attempts      integer NOT NULL DEFAULT 0,
  park_store    text,
  last_error    text,
  workflow_id   text,
  run_id        text,
  prepared_at   timestamptz,
  ended_at      timestamptz,
  UNIQUE (source, event_id)
) WITH (fillfactor = 80);
-- `open`, not `state`, is in the index predicate, so that most updates stay heap-only.
CREATE INDEX inbox_ready ON inbox (source, priority, seq) WHERE open;
CREATE INDEX inbox_parked ON inbox (park_store, priority, seq) WHERE state = 'parked';
CREATE INDEX inbox_batch ON inbox (batch) WHERE open;
CREATE INDEX inbox_document ON inbox (doc_id, version, event_id);
CREATE INDEX inbox_recent ON inbox (seq DESC);

CREATE TABLE payloads (
  inbox_id uuid PRIMARY KEY REFERENCES inbox ON DELETE CASCADE,
  body     bytea NOT NULL
);

-- What the pipeline made of an event, immutable. The text of a document lives here and nowhere else in PostgreSQL:
-- a flip moves a pointer, not a text.
CREATE TABLE manifests (
  id           uuid PRIMARY KEY,
  inbox_id     uuid NOT NULL REFERENCES inbox ON DELETE CASCADE,
  doc_id       uuid NOT NULL,
  source       text NOT NULL,
  doc_key      text NOT NULL,
  pipeline     text NOT NULL,
  kind         text NOT NULL,
  title        text NOT NULL,
  text         text NOT NULL,
  occurred_at  timestamptz NOT NULL,
  metadata     jsonb NOT NULL,
  parent_id    uuid,
  deleted      boolean NOT NULL,
  chunks       bytea NOT NULL,   -- msgpack [[start, end], …]
  vectors      bytea NOT NULL,   -- float32, row after row
  assertions   bytea NOT NULL,   -- msgpack [[predicate, subject, object, value, start], …]
  entities     text[] NOT NULL,
  hash         bytea NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  UNIQUE (inbox_id, pipeline)
);
ALTER TABLE manifests ALTER COLUMN vectors SET STORAGE EXTERNAL;
CREATE INDEX manifests_document ON manifests (doc_id);
CREATE INDEX manifests_parent ON manifests (parent_id) WHERE parent_id IS NOT NULL;

-- The saga's journal: one row an attempt to publish a manifest.
CREATE TABLE stages (
  stage_id       uuid PRIMARY KEY,
  inbox_id       uuid NOT NULL,
  doc_id         uuid NOT NULL,
  version        bigint NOT NULL,
  event_id       text COLLATE "C" NOT NULL,
  manifest_id    uuid NOT NULL,
  state          text NOT NULL CHECK (state IN ('staging', 'committed', 'superseded', 'reaping', 'aborted', 'reaped')),
  owner          uuid NOT NULL,
  lease_until    timestamptz NOT NULL,
  chunks         integer NOT NULL,
  chunks_sum     bigint NOT NULL,
  edges          integer NOT NULL,
  edges_sum      bigint NOT NULL,
  created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  graph_at       timestamptz,
  vectors_at     timestamptz,
  committed_at   timestamptz,
  ended_at       timestamptz,
  error          text
) WITH (fillfactor = 80);
CREATE INDEX stages_document ON stages (doc_id);
CREATE INDEX stages_event ON stages (inbox_id);
CREATE INDEX stages_unsettled ON stages (state, lease_until) WHERE state IN ('staging', 'aborted', 'superseded', 'reaping');
CREATE INDEX stages_committed ON stages (committed_at) WHERE state = 'committed';

-- What readers see: the pointer. One row a document.
CREATE TABLE documents (
  doc_id       uuid PRIMARY KEY,
  source       text NOT NULL,
  doc_key      text NOT NULL,
  kind         text NOT NULL,
  title        text NOT NULL,
  version      bigint NOT NULL,
  event_id     text COLLATE "C" NOT NULL,
  stage_id     uuid NOT NULL,
  manifest_id  uuid NOT NULL REFERENCES manifests,
  parent_id    uuid,
  deleted      boolean NOT NULL,
  occurred_at  timestamptz NOT NULL,
  entities     text[] NOT NULL,
  hash         bytea NOT NULL,
  committed_at timestamptz NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX documents_entities ON documents USING gin (entities) WITH (fastupdate = off) WHERE NOT deleted;
CREATE INDEX documents_stage ON documents (stage_id);
CREATE INDEX documents_parent ON documents (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX documents_recent ON documents (committed_at DESC);

CREATE TABLE dead_letters (
  id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  inbox_id         uuid NOT NULL REFERENCES inbox ON DELETE CASCADE,
  source           text NOT NULL,
  doc_id           uuid NOT NULL,
  version          bigint NOT NULL,
  event_id         text COLLATE "C" NOT NULL,
  step             text NOT NULL,
  error_class      text NOT NULL,
  fingerprint      text NOT NULL,
  message          text NOT NULL,
  remedy           text NOT NULL DEFAULT '',
  attempts         integer NOT NULL,
  first_at         timestamptz NOT NULL,
  last_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  pipeline         text NOT NULL,
  status           text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'retrying', 'resolved', 'discarded', 'superseded')),
  resolution       text,
  actor            text,
  UNIQUE (inbox_id)
);
CREATE INDEX dead_letters_status ON dead_letters (status, last_at DESC);
CREATE INDEX dead_letters_document ON dead_letters (doc_id) WHERE status IN ('open', 'retrying');

CREATE TABLE store_state (
  store        text PRIMARY KEY,
  state        text NOT NULL CHECK (state IN ('ready', 'recovering')),
  incarnation  text NOT NULL,
  verified_at  timestamptz NOT NULL,
  changed_at   timestamptz NOT NULL DEFAULT now(),
  reason       text NOT NULL DEFAULT ''
);

CREATE TABLE cursors (
  source     text PRIMARY KEY,
  position   jsonb NOT NULL,
  changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE flags (
  name       text PRIMARY KEY,
  value      jsonb NOT NULL,
  actor      text NOT NULL,
  changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
  id         text PRIMARY KEY,
  name       text NOT NULL,
  digest     bytea NOT NULL UNIQUE,
  scopes     text[] NOT NULL CHECK (scopes <@ ARRAY['ingest', 'read', 'admin']),
  created_at timestamptz NOT NULL DEFAULT now(),
  used_at    timestamptz,
  revoked_at timestamptz
);

CREATE TABLE audit (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor    text NOT NULL,
  action   text NOT NULL,
  subject  text NOT NULL,
  detail   jsonb NOT NULL DEFAULT '{}'
);
