-- requires 0006
-- What a source's pulls brought because its webhook was lost: how many events in all, and when last.
ALTER TABLE sources
  ADD COLUMN healed    bigint NOT NULL DEFAULT 0,
  ADD COLUMN healed_at timestamptz;
