-- requires 0006
-- A rollout by plan: one row from its start to its end. At most one of a subject goes on.
CREATE TABLE rollout_runs (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  subject     text NOT NULL,        -- as in `rollouts`
  build       text,                 -- of subject `build`: the candidate
  plan        jsonb NOT NULL,       -- as it was when the rollout started
  step        smallint NOT NULL,    -- number in the plan, from 0; -1 after the way back from the first step
  state       text NOT NULL CHECK (state IN ('running', 'held', 'rolled back', 'done', 'stopped')),
  approved    boolean NOT NULL DEFAULT false,  -- a person allowed to leave this step
  reason      text NOT NULL DEFAULT '',        -- of the last change
  changed_by  text NOT NULL,
  started_by  text NOT NULL,
  started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  step_began  timestamptz NOT NULL DEFAULT clock_timestamp(),
  step_seq    bigint NOT NULL,      -- events of the step have a greater `seq`
  calm_seq    bigint NOT NULL,      -- events whose time says something have a greater `seq`: none was disturbed since
  baseline    double precision,     -- the other side's p99 when it was last known (seconds)
  verdict     text NOT NULL DEFAULT '',         -- what the gate says, and its checks
  checks      jsonb NOT NULL DEFAULT '[]',
  checked_at  timestamptz,
  changes     integer NOT NULL DEFAULT 1,       -- how often the share was changed, and how many of these changes
  applied     integer NOT NULL DEFAULT 0,       -- reached what follows them outside this database
  ended_at    timestamptz
);
CREATE UNIQUE INDEX rollout_runs_open ON rollout_runs (subject) WHERE ended_at IS NULL;
CREATE INDEX rollout_runs_recent ON rollout_runs (subject, id DESC);

-- Who changed what, by subject, newest first.
CREATE INDEX audit_subject ON audit (subject, id DESC);
