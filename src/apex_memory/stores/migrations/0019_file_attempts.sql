-- requires 0006
-- How often the unpacking of a file began without having ended: a file that ends its worker is given up in the end.
ALTER TABLE files ADD COLUMN starts integer NOT NULL DEFAULT 0;
