-- How many renewals the lease's family had when it was opened or last renewed.
ALTER TABLE leases ADD COLUMN renewals INTEGER NOT NULL DEFAULT 0;
-- A family is looked up for what can still be taken back: what ended is not in the way.
DROP INDEX leases_family;
CREATE INDEX leases_family ON leases (root) WHERE root IS NOT NULL AND state < 4;
