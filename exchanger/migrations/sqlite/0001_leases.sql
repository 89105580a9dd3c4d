-- Every key grows with time (UUIDs of version 7, expiries, sequence numbers), so inserts stay at the
-- end of their tree and pruning is a range. Times are epoch milliseconds unless named otherwise.

CREATE TABLE leases (
    id             BLOB    NOT NULL PRIMARY KEY,
    root           BLOB,             -- the family's first lease; NULL when it is this one
    parent         BLOB,             -- the lease that this one renewed
    family_ends_at INTEGER NOT NULL,
    handle         BLOB    NOT NULL, -- SHA-256 of the present handle; empty once a renewal opened a child
    state          INTEGER NOT NULL, -- 0 pending, 1 active, 2 revoking, 3 outliving, 4 ended
    at             INTEGER NOT NULL, -- when the reaper has to look; since when it is ended
    detail         TEXT    NOT NULL, -- the state with its data, as JSON: what compare-and-set compares
    backend        TEXT    NOT NULL,
    identity       TEXT    NOT NULL,
    revocability   INTEGER NOT NULL, -- 0 none, 1 by name, 2 by token
    object         TEXT    NOT NULL, -- JSON
    "grant"        TEXT    NOT NULL,
    rule           TEXT    NOT NULL,
    issuer         TEXT    NOT NULL,
    issuer_url     TEXT    NOT NULL,
    key_id         TEXT    NOT NULL,
    claims         BLOB    NOT NULL, -- JSON, packed
    scope          TEXT    NOT NULL, -- separated by spaces
    opened_at      INTEGER NOT NULL,
    token_expires  INTEGER NOT NULL, -- seconds
    token_hash     BLOB    NOT NULL,
    policy_digest  TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- What each backend's reaper has to do, and nothing about the past.
CREATE INDEX leases_due ON leases (backend, at) WHERE state < 4;
-- Only renewals have a root: an exchange does not pay for this.
CREATE INDEX leases_family ON leases (root) WHERE root IS NOT NULL;

-- Subject tokens and who holds them. One token has one expiry, so this key is unique for the token.
CREATE TABLE used (
    expires  INTEGER NOT NULL, -- the raw `exp`, in seconds
    hash     BLOB    NOT NULL,
    kept_for INTEGER NOT NULL, -- seconds after `expires`
    session  BLOB,             -- SHA-256 of the session secret; NULL: good for one use
    closed   INTEGER NOT NULL, -- 1 once an admin revoked a lease of it
    uses     INTEGER NOT NULL,
    requests BLOB    NOT NULL, -- of each request that may be asked again: id's hash, lease, first time, retries
    PRIMARY KEY (expires, hash)
) STRICT, WITHOUT ROWID;

-- Handles that a renewal spent, and what it gave for them.
CREATE TABLE spent (
    lease   BLOB    NOT NULL,
    handle  BLOB    NOT NULL,
    request BLOB,              -- SHA-256 of the request id
    opened  BLOB    NOT NULL,  -- the child, or the lease itself where it was extended
    given   BLOB    NOT NULL,  -- SHA-256 of the new handle
    at      INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    PRIMARY KEY (lease, handle)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    seq  INTEGER NOT NULL PRIMARY KEY,
    at   INTEGER NOT NULL,
    hash BLOB    NOT NULL,
    body BLOB    NOT NULL -- JSON, packed
) STRICT;

-- What packed texts are compared with.
CREATE TABLE samples (
    id   INTEGER NOT NULL UNIQUE,
    kind TEXT    NOT NULL,
    text TEXT    NOT NULL
) STRICT;

CREATE TABLE freezes (
    kind   TEXT NOT NULL,      -- all, issuer, grant
    name   TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- How far each audit stream has come, up to which expiry used tokens were forgotten, and what proves that the
-- store can be written.
CREATE TABLE progress (
    name  TEXT    NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
