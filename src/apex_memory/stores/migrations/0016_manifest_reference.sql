-- requires 0006
-- PostgreSQL looks for the document of each manifest that is removed. Without an index that is a walk through all documents.
CREATE INDEX documents_manifest ON documents (manifest_id);
