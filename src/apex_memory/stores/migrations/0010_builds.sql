-- requires 0006
-- The builds of Apex whose workers have run here. One is current: it carries every document that no candidate carries.
-- The candidate, and the share of the documents that it carries, is the row `build` of `rollouts`.
CREATE TABLE builds (
  build          text PRIMARY KEY,
  role           text NOT NULL DEFAULT 'waiting' CHECK (role IN ('current', 'previous', 'waiting', 'retired')),
  registered_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  seen_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
  promoted_at    timestamptz,
  checked_at     timestamptz,
  check_passed   boolean,
  check_detail   text NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX builds_current ON builds (role) WHERE role = 'current';
CREATE UNIQUE INDEX builds_previous ON builds (role) WHERE role = 'previous';
