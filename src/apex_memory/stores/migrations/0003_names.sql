-- Names as the code has them since 0.2.0.
ALTER TABLE nudges RENAME TO change_hints;
ALTER INDEX nudges_oldest RENAME TO change_hints_oldest;
ALTER INDEX nudges_pkey RENAME TO change_hints_pkey;
