-- requires 0006
-- The content of a finished file goes after `payload_days`, and its row stays: `removed_bytes` is the size that it had. NULL: `body` is
-- the content.
ALTER TABLE files ADD COLUMN removed_bytes bigint;
CREATE INDEX files_content ON files (ended_at) WHERE ended_at IS NOT NULL AND removed_bytes IS NULL;

-- Timelines, and searches within a time: the latest documents of an entity, or before a time. An entity that a third of a million
-- documents named took 1.1 s a page.
CREATE INDEX documents_occurred ON documents (occurred_at DESC, doc_id DESC) WHERE NOT deleted;
-- Lists of a source or a kind: those of a source that sends no more took 1.9 s a page, of a million. One index for both: the
-- pairs that there are, some dozens, are read from it. Ascending, so that a row comparison bounds a walk backwards.
CREATE INDEX documents_kind ON documents (source, kind, committed_at);
-- What both cost a flip of 256 documents, of a million, on a machine that others used: CPU of inserts 15 to 20 ms without and 17 to 25 ms
-- with both, of updates 48 to 52 ms and 45 to 61 ms; log of inserts 285 and 340 kB. Their size is 83 MB a million, of 800 MB.
