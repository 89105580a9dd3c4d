-- What a lease keeps, sealed, so that its credential can be taken back; gone when it ends.
ALTER TABLE leases ADD COLUMN sealed BLOB;
-- Only leases that keep something pay for this.
CREATE INDEX leases_sealed ON leases (id) WHERE sealed IS NOT NULL;

-- One value, by which a start knows whether it was given the right key.
CREATE TABLE sealing (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
