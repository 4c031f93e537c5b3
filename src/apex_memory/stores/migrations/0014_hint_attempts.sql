-- requires 0006
-- Failed fetches of the record that a change hint names: how many counted while the vendor answered other calls, and when
-- the next is due. NULL: it was not tried yet.
ALTER TABLE change_hints
  ADD COLUMN attempts integer NOT NULL DEFAULT 0,
  ADD COLUMN due_at   timestamptz;
