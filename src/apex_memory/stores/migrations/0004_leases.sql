-- What one process at a time may do, such as renewing a token, and until when it may. The holder renews its lease;
-- the lease of a holder that died runs out.
CREATE TABLE leases (
  name   text PRIMARY KEY,
  owner  uuid NOT NULL,
  until  timestamptz NOT NULL
);
