-- Hashes are random: kept by their hash, the tokens of one batch would each change a page of their own. Kept in the
-- order of their first use they share one, and the server finds them by an index in memory.
ALTER TABLE used RENAME TO used_by_hash;
CREATE TABLE used (
    seq      INTEGER NOT NULL PRIMARY KEY,
    expires  INTEGER NOT NULL, -- the raw `exp`, in seconds
    hash     BLOB    NOT NULL,
    kept_for INTEGER NOT NULL, -- seconds after `expires`
    session  BLOB,             -- SHA-256 of the session secret; NULL: good for one use
    closed   INTEGER NOT NULL, -- 1 once an admin revoked a lease of it
    uses     INTEGER NOT NULL,
    requests BLOB    NOT NULL  -- of each request that may be asked again: id's hash, lease, first time, retries
) STRICT;
INSERT INTO used (expires, hash, kept_for, session, closed, uses, requests)
    SELECT expires, hash, kept_for, session, closed, uses, requests FROM used_by_hash ORDER BY expires, hash;
DROP TABLE used_by_hash;
