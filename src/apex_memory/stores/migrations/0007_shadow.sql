-- requires 0006
-- A shadow stage is a copy of what another path or build published: written to graph and vectors, verified, compared and
-- removed. No document points at one. The constraint refuses a flip, whatever the code does.
ALTER TABLE stages ADD COLUMN shadow boolean NOT NULL DEFAULT false;
ALTER TABLE stages ADD CONSTRAINT stages_shadow_check
  CHECK (NOT shadow OR (state IN ('staging', 'aborted', 'reaped') AND committed_at IS NULL));

-- When a path claimed the event the last time: what it took from there is comparable between paths, waiting is not.
ALTER TABLE inbox ADD COLUMN claimed_at timestamptz;

-- One row a copy: queued when the event ends, and the result of the comparison once it was carried.
CREATE TABLE shadows (
  id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  subject       text NOT NULL,              -- as in `rollouts`: `source:NAME`, or `build`
  build         text NOT NULL DEFAULT '',   -- the candidate build that carries it; empty for a source
  inbox_id      uuid NOT NULL REFERENCES inbox ON DELETE CASCADE,
  source        text NOT NULL,
  replay        boolean NOT NULL DEFAULT false,
  state         text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'compared', 'failed')),
  queued_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  owner         uuid,
  next_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  attempts      integer NOT NULL DEFAULT 0,  -- claims in a row that never reported an outcome
  tries         integer NOT NULL DEFAULT 0,  -- transient failures that were reported
  equal         boolean,
  fields        text[] NOT NULL DEFAULT '{}',
  differences   jsonb NOT NULL DEFAULT '[]', -- [{field, reason, live, shadow}]
  live_outcome  text,
  shadow_outcome text,
  error         text,
  tallies       jsonb,
  seconds       jsonb,                       -- {"live": {step: s}, "shadow": {step: s}}
  live_seconds  real,
  shadow_seconds real,
  content       bytea,                       -- what the copy was made of, where it differs: compressed JSON, without vectors
  ended_at      timestamptz,
  UNIQUE (inbox_id, subject, build)
) WITH (fillfactor = 80);
CREATE INDEX shadows_waiting ON shadows (subject, build, id) WHERE state = 'waiting';
CREATE INDEX shadows_ended ON shadows (subject, build, ended_at) WHERE state <> 'waiting';
CREATE INDEX shadows_different ON shadows (subject, build, id) WHERE state = 'compared' AND NOT equal;

-- Copies that were not carried, by hour: the backlog was full, or its payload is gone.
CREATE TABLE shadow_drops (
  subject  text NOT NULL,
  build    text NOT NULL DEFAULT '',
  reason   text NOT NULL,
  hour     timestamptz NOT NULL,
  count    bigint NOT NULL,
  PRIMARY KEY (subject, build, reason, hour)
);

-- Differences that are meant, by field. `metadata` accepts `metadata.subject`, too.
CREATE TABLE shadow_acceptances (
  subject  text NOT NULL,
  build    text NOT NULL DEFAULT '',
  field    text NOT NULL,
  actor    text NOT NULL,
  reason   text NOT NULL DEFAULT '',
  at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (subject, build, field)
);
