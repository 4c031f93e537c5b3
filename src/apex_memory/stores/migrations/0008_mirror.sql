-- requires 0006
-- The legacy mirror: accepted webhooks that are forwarded to the company's own former system, in order per source.

-- One row a webhook. Its headers and body are removed when it is delivered or discarded.
CREATE TABLE mirror_copies (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  source      text NOT NULL,
  received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  queued_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  query       bytea,
  headers     bytea,
  body        bytea,
  bytes       integer NOT NULL,
  state       text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'dead', 'discarded')),
  attempts    integer NOT NULL DEFAULT 0,
  refusals    integer NOT NULL DEFAULT 0,
  last_error  text,
  ended_at    timestamptz,
  resolution  text,
  actor       text,
  CHECK (state IN ('delivered', 'discarded') OR body IS NOT NULL)
) WITH (fillfactor = 80);
CREATE INDEX mirror_copies_waiting ON mirror_copies (source, id) WHERE state = 'waiting';
CREATE INDEX mirror_copies_dead ON mirror_copies (source, id) WHERE state = 'dead';
CREATE INDEX mirror_copies_ended ON mirror_copies (ended_at) WHERE state IN ('delivered', 'discarded');

-- One row a source: how its target responds. `failing_since` is when it began to fail without a response since;
-- `refusing`: it refused the last copy for good.
CREATE TABLE mirrors (
  source        text PRIMARY KEY,
  failing_since timestamptz,
  failures      integer NOT NULL DEFAULT 0,
  refusing      boolean NOT NULL DEFAULT false,
  next_at       timestamptz,
  last_error    text,
  error_at      timestamptz,
  delivered_at  timestamptz
) WITH (fillfactor = 50);
