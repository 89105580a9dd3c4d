//! Leases, spent handles and used tokens as rows.

use super::{Fault, packed::Packed, writer::Transaction};
use crate::{
    clock::Timestamp,
    leases::{Family, Lease, Placement, Revocability, State, Subject, TokenKey},
    sealing::Sealed,
    store::{Hash, StoreError},
};
use arcstr::ArcStr;
use jobpass_protocol::{BackendName, GrantName, IssuerName, LeaseId, RuleName};
use rusqlite::{CachedStatement, Connection, Row, params};
use std::sync::Arc;
use uuid::Uuid;

/// What [`lease`] reads, in its order.
pub(super) const LEASE: &str = "id, root, parent, family_ends_at, detail, backend, identity, revocability, object, \
     \"grant\", rule, issuer, issuer_url, key_id, unpack(claims), scope, opened_at, token_expires, token_hash, \
     policy_digest, sealed, renewals";

/// `leases.state` of a lease that ended: such leases are in no index.
pub(super) const ENDED: i64 = 4;

pub(super) const fn phase(state: &State) -> i64 {
    match state {
        State::Pending { .. } => 0,
        State::Active { .. } => 1,
        State::Revoking { .. } => 2,
        State::Outliving { .. } => 3,
        State::Ended { .. } => ENDED,
    }
}

/// `leases.at`: what the lease is ordered by.
fn at(state: &State) -> i64 {
    match state {
        State::Ended { at, .. } => at.millis(),
        open => open.due_at().map_or(0, Timestamp::millis),
    }
}

pub(super) fn detail(state: &State) -> Result<String, Fault> {
    serde_json::to_string(state).map_err(corrupt)
}

/// What most transactions write, again and again.
pub(super) struct Inserts<'c> {
    lease: CachedStatement<'c>,
    used: CachedStatement<'c>,
    /// `seq, at, hash, body`.
    pub(super) audit: CachedStatement<'c>,
}

impl<'c> Inserts<'c> {
    pub(super) fn prepare(conn: &'c Connection) -> Result<Self, Fault> {
        // In the order of the tables' columns.
        let lease = "INSERT INTO leases VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, \
             ?17, ?18, ?19, ?20, ?21, ?22, ?23, NULL, ?24)";
        let used = "INSERT OR REPLACE INTO used VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let audit = "INSERT INTO audit VALUES (?1, ?2, ?3, ?4)";
        let [lease, used, audit] = [lease, used, audit].map(|sql| conn.prepare_cached(sql));
        Ok(Self { lease: lease?, used: used?, audit: audit? })
    }
}

/// Writes a new lease; fails when there is one of its id.
pub(super) fn insert_lease(
    tx: &mut Transaction<'_>,
    lease: &Lease,
    claims: &Packed,
    handle: &Hash,
) -> Result<(), Fault> {
    let Lease { id, family, subject, placement, opened_at, token, policy_digest, state, sealed: _ } = lease;
    claims.write_sample(tx.conn)?;
    tx.inserts.lease.execute(params![
        id.as_bytes(),
        (family.root != *id).then(|| family.root.as_bytes()),
        family.parent.as_ref().map(LeaseId::as_bytes),
        family.ends_at.millis(),
        handle,
        phase(state),
        at(state),
        detail(state)?,
        placement.backend.as_str(),
        placement.identity,
        revocability_number(placement.revocability),
        placement.object.to_string(),
        subject.grant.as_str(),
        subject.rule.as_str(),
        subject.issuer.as_str(),
        subject.issuer_url,
        subject.key_id,
        claims.bytes(),
        subject.scope.join(" "),
        opened_at.millis(),
        token.expires,
        token.hash,
        &**policy_digest,
        family.renewals,
    ])?;
    Ok(())
}

/// Reads a row of the columns [`LEASE`].
pub(super) fn lease(row: &Row<'_>) -> Result<Lease, Fault> {
    let text = |index| row.get_ref(index)?.as_str().map_err(rusqlite::Error::from);
    let time = |index| row.get(index).map(Timestamp::from_millis);
    let id = lease_id(row, 0)?;
    Ok(Lease {
        id,
        family: Family {
            root: row.get::<_, Option<[u8; 16]>>(1)?.map_or(id, to_lease_id),
            parent: row.get::<_, Option<[u8; 16]>>(2)?.map(to_lease_id),
            ends_at: time(3)?,
            renewals: row.get(21)?,
        },
        state: serde_json::from_str(text(4)?).map_err(corrupt)?,
        placement: Placement {
            backend: BackendName::parse(text(5)?).map_err(corrupt)?,
            identity: row.get(6)?,
            revocability: revocability(row.get(7)?)?,
            object: serde_json::from_str(text(8)?).map_err(corrupt)?,
        },
        subject: Subject {
            grant: GrantName::parse(text(9)?).map_err(corrupt)?,
            rule: RuleName::parse(text(10)?).map_err(corrupt)?,
            issuer: IssuerName::parse(text(11)?).map_err(corrupt)?,
            issuer_url: row.get(12)?,
            key_id: row.get(13)?,
            claims: ArcStr::from(text(14)?),
            scope: text(15)?.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect(),
        },
        opened_at: time(16)?,
        token: TokenKey { expires: row.get(17)?, hash: row.get(18)? },
        policy_digest: Arc::from(text(19)?),
        sealed: row.get_ref(20)?.as_blob_or_null().map_err(rusqlite::Error::from)?.map(Sealed::stored),
    })
}

/// One lease and the hash of its present handle, which is empty once a renewal opened a child.
pub(super) fn find_lease(conn: &Connection, id: LeaseId) -> Result<Option<(Lease, Vec<u8>)>, Fault> {
    let mut statement = conn.prepare_cached(&format!("SELECT {LEASE}, handle FROM leases WHERE id = ?1"))?;
    let mut rows = statement.query([id.as_bytes()])?;
    rows.next()?.map(|row| Ok((lease(row)?, row.get(22)?))).transpose()
}

/// All leases that a query over the columns [`LEASE`] finds.
pub(super) fn find_leases(conn: &Connection, rest: &str, params: impl rusqlite::Params) -> Result<Vec<Lease>, Fault> {
    let mut statement = conn.prepare_cached(&format!("SELECT {LEASE} FROM leases {rest}"))?;
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(lease(row)?);
    }
    Ok(found)
}

/// Compare-and-set. What the lease keeps is gone with its end.
pub(super) fn set_state(
    conn: &Connection,
    id: LeaseId,
    from: &State,
    to: &State,
    kept: Option<&Sealed>,
) -> Result<bool, Fault> {
    let sql = "UPDATE leases SET state = ?1, at = ?2, detail = ?3, \
         sealed = CASE ?1 WHEN 4 THEN NULL ELSE coalesce(sealed, ?6) END WHERE id = ?4 AND detail = ?5";
    let params = params![phase(to), at(to), detail(to)?, id.as_bytes(), detail(from)?, kept.map(Sealed::bytes)];
    Ok(conn.prepare_cached(sql)?.execute(params)? == 1)
}

pub(super) fn set_handle(conn: &Connection, id: LeaseId, handle: &[u8], renewals: u32) -> Result<(), Fault> {
    let sql = "UPDATE leases SET handle = ?1, renewals = ?2 WHERE id = ?3";
    conn.prepare_cached(sql)?.execute(params![handle, renewals, id.as_bytes()])?;
    Ok(())
}

/// A handle that was spent, and what was given for it.
pub(super) struct Spent {
    pub(super) handle: Hash,
    pub(super) request: Option<Hash>,
    pub(super) opened: LeaseId,
    pub(super) given: Hash,
    pub(super) at: Timestamp,
    pub(super) retries: u32,
}

/// All spent handles of a lease: few, and compared by the caller in constant time.
pub(super) fn find_spent(conn: &Connection, lease: LeaseId) -> Result<Vec<Spent>, Fault> {
    let sql = "SELECT handle, request, opened, given, at, retries FROM spent WHERE lease = ?1";
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map([lease.as_bytes()], |row| {
        Ok(Spent {
            handle: row.get(0)?,
            request: row.get(1)?,
            opened: lease_id(row, 2)?,
            given: row.get(3)?,
            at: Timestamp::from_millis(row.get(4)?),
            retries: row.get(5)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn put_spent(conn: &Connection, lease: LeaseId, spent: &Spent) -> Result<(), Fault> {
    let Spent { handle, request, opened, given, at, retries } = spent;
    let params = params![lease.as_bytes(), handle, request, opened.as_bytes(), given, at.millis(), retries];
    conn.prepare_cached("INSERT OR REPLACE INTO spent VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params)?;
    Ok(())
}

/// A request that may be asked again.
pub(super) struct Request {
    /// The first half of the hash of its id: unique within one token's session.
    pub(super) key: [u8; 16],
    /// The lease that answered it last.
    pub(super) lease: LeaseId,
    /// When it came first.
    pub(super) first_at: Timestamp,
    /// How often it came again.
    pub(super) retries: u8,
}

impl Request {
    const BYTES: usize = 16 + 16 + 8 + 1;
}

/// Who holds a token.
pub(super) struct Used {
    pub(super) session: Option<Hash>,
    pub(super) closed: bool,
    pub(super) uses: u32,
    pub(super) requests: Vec<Request>,
}

/// Reads the row of a used token.
pub(super) fn read_used(conn: &Connection, token: &TokenKey, row: i64) -> Result<Used, Fault> {
    let sql = "SELECT session, closed, uses, requests FROM used WHERE seq = ?1 AND hash = ?2";
    let read = |row: &Row<'_>| {
        let requests = row.get_ref(3)?.as_blob()?.chunks_exact(Request::BYTES).filter_map(read_request).collect();
        Ok(Used { session: row.get(0)?, closed: row.get(1)?, uses: row.get(2)?, requests })
    };
    Ok(conn.prepare_cached(sql)?.query_row((row, token.hash), read)?)
}

fn read_request(bytes: &[u8]) -> Option<Request> {
    let (key, rest) = bytes.split_first_chunk::<16>()?;
    let (lease, rest) = rest.split_first_chunk::<16>()?;
    let (at, rest) = rest.split_first_chunk::<8>()?;
    let first_at = Timestamp::from_millis(i64::from_be_bytes(*at));
    Some(Request { key: *key, lease: to_lease_id(*lease), first_at, retries: *rest.first()? })
}

/// Writes who holds a token, for the first time or anew.
pub(super) fn put_used(tx: &mut Transaction<'_>, token: TokenKey, kept_for: i64, used: &Used) -> Result<(), Fault> {
    let mut requests = Vec::with_capacity(used.requests.len() * Request::BYTES);
    for request in &used.requests {
        requests.extend_from_slice(&request.key);
        requests.extend_from_slice(request.lease.as_bytes());
        requests.extend_from_slice(&request.first_at.millis().to_be_bytes());
        requests.push(request.retries);
    }
    let row = tx.tokens()?.row(&token);
    let params = params![row, token.expires, token.hash, kept_for, used.session, used.closed, used.uses, requests];
    tx.inserts.used.execute(params)?;
    if row.is_none() {
        let row = tx.conn.last_insert_rowid();
        tx.tokens()?.add(token, row);
    }
    Ok(())
}

/// Forgets a token whose time is over; says whether it was.
pub(super) fn forget_used(tx: &mut Transaction<'_>, (token, row): (TokenKey, i64), now: i64) -> Result<bool, Fault> {
    let sql = "DELETE FROM used WHERE seq = ?1 AND expires + kept_for < ?2";
    if tx.conn.prepare_cached(sql)?.execute([row, now])? == 0 {
        return Ok(false);
    }
    tx.tokens()?.forget(token);
    Ok(true)
}

/// Notes that tokens which expired then, or earlier, may have been used and are not known any more.
pub(super) fn put_forgotten(conn: &Connection, expires: i64) -> Result<(), Fault> {
    let sql =
        "INSERT INTO progress VALUES ('forgotten', ?1) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)";
    conn.prepare_cached(sql)?.execute([expires])?;
    Ok(())
}

fn lease_id(row: &Row<'_>, index: usize) -> rusqlite::Result<LeaseId> {
    row.get(index).map(to_lease_id)
}

pub(super) const fn to_lease_id(bytes: [u8; 16]) -> LeaseId {
    LeaseId::from_uuid(Uuid::from_bytes(bytes))
}

const fn revocability_number(revocability: Revocability) -> i64 {
    match revocability {
        Revocability::None => 0,
        Revocability::ByName => 1,
        Revocability::ByToken => 2,
    }
}

fn revocability(number: i64) -> Result<Revocability, Fault> {
    match number {
        0 => Ok(Revocability::None),
        1 => Ok(Revocability::ByName),
        2 => Ok(Revocability::ByToken),
        _ => Err(corrupt("a revocability that is none")),
    }
}

pub(super) fn corrupt(why: impl std::fmt::Display) -> Fault {
    Fault::Store(StoreError::Corrupt(why.to_string()))
}
