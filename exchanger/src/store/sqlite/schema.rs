//! Connections to the database file, and its migrations.

use super::Fault;
use crate::{
    audit::Link,
    store::{Hash, StoreError},
};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, config::DbConfig};
use std::{path::Path, time::Duration};

/// In order; `user_version` counts how many were applied.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/sqlite/0001_leases.sql"),
    include_str!("../../../migrations/sqlite/0002_sealing.sql"),
    include_str!("../../../migrations/sqlite/0003_families.sql"),
    include_str!("../../../migrations/sqlite/0004_used_in_order.sql"),
];

/// Rows of about 2 kB: larger pages hold them without overflow and with less waste.
const PAGE_BYTES: u32 = 8192;

/// Nobody else writes, but for a person with a tool; readers wait only while a log is recovered.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// The one connection that writes. Migrates first.
pub(super) fn open_writer(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "page_size", PAGE_BYTES)?;
    conn.pragma_update(None, "journal_mode", "wal")?;
    conn.pragma_update(None, "synchronous", "full")?;
    // The checkpointer does that, beside the writer.
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "foreign_keys", false)?;
    // Nor at its end: a log that somebody changed would spoil the database.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.set_prepared_statement_cache_capacity(64);
    migrate(&conn)?;
    Ok(conn)
}

/// A connection that cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(32);
    Ok(conn)
}

/// A connection that does nothing but move pages from the log to the database.
pub(super) fn open_checkpointer(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(conn)
}

/// The end of the audit chain on disk.
pub(super) fn chain_head(conn: &Connection) -> Result<Link, Fault> {
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, u64>(0)?, row.get::<_, Hash>(1)?));
    let last = conn.query_row("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1", [], read).optional()?;
    Ok(last.map_or(Link::START, |(seq, hash)| Link { seq, hash }))
}

fn migrate(conn: &Connection) -> Result<(), Fault> {
    let applied: usize = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if applied > MIGRATIONS.len() {
        let text = format!("its schema is of version {applied}, and this program knows {}", MIGRATIONS.len());
        return Err(Fault::Store(StoreError::Corrupt(text)));
    }
    for (version, sql) in (1..).zip(MIGRATIONS).skip(applied) {
        conn.execute_batch(&format!("BEGIN IMMEDIATE; {sql} PRAGMA user_version = {version}; COMMIT;"))?;
    }
    Ok(())
}
