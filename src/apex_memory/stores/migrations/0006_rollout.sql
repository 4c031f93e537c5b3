-- Which path carried an event (`temporal` or `direct`), and which build of Apex. NULL until it is claimed.
ALTER TABLE inbox
  ADD COLUMN path  text CHECK (path IN ('temporal', 'direct')),
  ADD COLUMN build text;

-- What share of the documents goes which way. The claim reads it, so a change acts with the next claim everywhere.
-- Subject `source:NAME`: the per cent of the source's documents that Temporal carries; no row means all of them.
-- Subject `build`: the per cent of all documents that the candidate build carries; no row means none.
-- `shadow`: copies of what the others carry are staged and compared too, and no reader sees them.
CREATE TABLE rollouts (
  subject     text PRIMARY KEY,
  share       smallint NOT NULL CHECK (share BETWEEN 0 AND 100),
  shadow      boolean NOT NULL DEFAULT false,
  build       text,
  changed_by  text NOT NULL DEFAULT '',
  changed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  reason      text NOT NULL DEFAULT ''
);
