//! Which tokens were used: where each one's row is, in memory.
//!
//! The rows lie in the order of first use, because an index on disk by what is random would have every exchange
//! change a page of its own. The writer alone has this index, and changes it together with the rows: what a
//! transaction changed is undone when it is rolled back, and with a new connection all is read again.

use super::Fault;
use crate::leases::TokenKey;
use rusqlite::{Connection, OptionalExtension as _};
use std::collections::BTreeMap;

/// An index over the table `used`.
pub(super) struct Tokens {
    rows: BTreeMap<TokenKey, i64>,
    /// Tokens that expired then, or earlier, may have been used and are not known any more.
    forgotten: Option<i64>,
    /// The rows that the transaction changed, in order, as they were before.
    before: Vec<(TokenKey, Option<i64>)>,
}

impl Tokens {
    /// Reads what is on disk.
    pub(super) fn load(conn: &Connection) -> Result<Self, Fault> {
        let mut statement = conn.prepare("SELECT expires, hash, seq FROM used")?;
        let read = |row: &rusqlite::Row<'_>| Ok((TokenKey { expires: row.get(0)?, hash: row.get(1)? }, row.get(2)?));
        let rows = statement.query_map([], read)?.collect::<Result<_, _>>()?;
        let sql = "SELECT value FROM progress WHERE name = 'forgotten'";
        let forgotten = conn.query_row(sql, [], |row| row.get(0)).optional()?;
        Ok(Self { rows, forgotten, before: Vec::new() })
    }

    /// The row of a token that was used.
    pub(super) fn row(&self, token: &TokenKey) -> Option<i64> {
        self.rows.get(token).copied()
    }

    /// Whether a token may have been used, and be forgotten since: it is expired, unless the clock was set back.
    pub(super) fn is_forgotten(&self, token: &TokenKey) -> bool {
        self.forgotten.is_some_and(|forgotten| token.expires <= forgotten)
    }

    /// The tokens that expired before, oldest first.
    pub(super) fn expired(&self, before: i64) -> impl Iterator<Item = (TokenKey, i64)> {
        let expired = self.rows.range(..TokenKey { expires: before, hash: [0; 32] });
        expired.map(|(token, row)| (*token, *row))
    }

    /// A token has a row now.
    pub(super) fn add(&mut self, token: TokenKey, row: i64) {
        let before = self.rows.insert(token, row);
        self.before.push((token, before));
    }

    /// A token has no row any more.
    pub(super) fn forget(&mut self, token: TokenKey) {
        let before = self.rows.remove(&token);
        self.before.push((token, before));
        self.forgotten = self.forgotten.max(Some(token.expires));
    }

    /// The transaction is on disk.
    pub(super) fn committed(&mut self) {
        self.before.clear();
    }

    /// As it was before the transaction. What was almost forgotten stays so: it refuses only what is expired anyway.
    pub(super) fn rolled_back(mut self) -> Self {
        for (token, before) in self.before.drain(..).rev() {
            match before {
                Some(row) => self.rows.insert(token, row),
                None => self.rows.remove(&token),
            };
        }
        self
    }
}
