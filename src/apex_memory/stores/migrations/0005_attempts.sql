-- What bounds the attempts of an event that never reports an outcome, because its step times out or ends the worker
-- (`starts`), or that is parked again and again while its store serves others (`parks`, since `parked_at`).
ALTER TABLE inbox
  ADD COLUMN starts    integer NOT NULL DEFAULT 0,
  ADD COLUMN parks     integer NOT NULL DEFAULT 0,
  ADD COLUMN parked_at timestamptz;
