//! The verbs that write, each the body of one transaction: every check first, then the writes.

use super::{
    Fault,
    packed::Packed,
    rows::{self, Request, Spent, Used},
    writer::Transaction,
};
use crate::{
    audit::{Entry, Event},
    clock::Timestamp,
    leases::{Ending, Lease, State},
    sealing::Sealed,
    store::{
        Binding, Entitlement, FreezeTarget, Hash, MAX_RENEWALS, MAX_RETRIES, Opened, Opening, RETRY_WINDOW, Refusal,
        Revocation, Rotation, Targets,
    },
};
use jobpass_policy::Freezes;
use jobpass_protocol::{BackendName, GrantName, IssuerName, LeaseId};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::sync::Arc;
use subtle::ConstantTimeEq as _;

/// A spent handle is honoured once more.
const MAX_RENEWAL_RETRIES: u32 = 1;

/// What is long in an opening, as JSON and packed.
pub(super) struct Texts {
    /// The lease's claims.
    pub(super) claims: Packed,
    /// The audit entry, which the chain covers as it is.
    pub(super) body: Arc<str>,
    /// The audit entry.
    pub(super) entry: Packed,
}

/// Writes a lease with its entitlement and its audit entry.
pub(super) fn open(tx: &mut Transaction<'_>, opening: &Opening, texts: &Texts) -> Result<Opened<()>, Fault> {
    let lease = &opening.lease;
    let superseded = match &opening.by {
        Entitlement::Token(binding) => {
            let (used, lost) = match bind(tx, binding, lease.id)? {
                Ok(bound) => bound,
                Err(refusal) => return Ok(Opened::Refused(refusal)),
            };
            rows::insert_lease(tx, lease, &texts.claims, &opening.handle)?;
            rows::put_used(tx, binding.token, kept_for(binding), &used)?;
            match lost {
                Some(first) => family(tx.conn, first)?,
                None => Vec::new(),
            }
        }
        Entitlement::Renewal(rotation) => {
            let turn = match turn(tx, rotation)? {
                Ok(turn) => turn,
                Err(refusal) => return Ok(Opened::Refused(refusal)),
            };
            if matches!(lease.state, State::Active { expires_at } if expires_at > turn.lease.family.ends_at) {
                return Ok(Opened::Refused(Refusal::LeaseOver));
            }
            let mut child = lease.clone();
            child.family = turn.lease.family.clone();
            child.family.parent = Some(turn.lease.id);
            child.family.renewals += 1;
            rows::insert_lease(tx, &child, &texts.claims, &opening.handle)?;
            rotate(tx, turn, rotation, child.id, &opening.handle)?
        }
    };
    tx.append_text(opening.entry.at, Arc::clone(&texts.body), &texts.entry)?;
    let superseded = take_all_back(tx, superseded, Ending::Superseded, None)?;
    Ok(Opened::Yes { value: (), superseded })
}

/// Gives a lease a later expiry and a new handle.
pub(super) fn extend(
    tx: &mut Transaction<'_>,
    rotation: &Rotation,
    handle: &Hash,
    expires_at: Timestamp,
    entry: &Entry,
) -> Result<Opened<Lease>, Fault> {
    let turn = match turn(tx, rotation)? {
        Ok(turn) => turn,
        Err(refusal) => return Ok(Opened::Refused(refusal)),
    };
    let mut lease = turn.lease.clone();
    let State::Active { expires_at: present } = lease.state else { return Ok(Opened::Refused(Refusal::LeaseOver)) };
    if expires_at > lease.family.ends_at {
        return Ok(Opened::Refused(Refusal::LeaseOver));
    }
    // Never shorter: the system may hold the later expiry already.
    let extended = State::Active { expires_at: expires_at.max(present) };
    rows::set_state(tx.conn, lease.id, &lease.state, &extended, None)?;
    lease.state = extended;
    let superseded = rotate(tx, turn, rotation, lease.id, handle)?;
    tx.append(entry)?;
    let superseded = take_all_back(tx, superseded, Ending::Superseded, None)?;
    Ok(Opened::Yes { value: lease, superseded })
}

/// Decides to take leases back.
pub(super) fn revoke(tx: &mut Transaction<'_>, revocation: &Revocation) -> Result<Vec<Lease>, Fault> {
    let mut leases = match &revocation.targets {
        Targets::Family(id) => family(tx.conn, *id)?,
        Targets::Leases(ids) => {
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                found.extend(rows::find_lease(tx.conn, *id)?.map(|(lease, _)| lease));
            }
            found
        }
    };
    for lease in &mut leases {
        take_back(tx, lease, revocation.because, revocation.at, revocation.actor.as_deref())?;
        if revocation.close_sessions
            && let Some(row) = tx.tokens()?.row(&lease.token)
        {
            let sql = "UPDATE used SET closed = 1 WHERE seq = ?1 AND hash = ?2";
            tx.conn.prepare_cached(sql)?.execute((row, lease.token.hash))?;
        }
    }
    Ok(leases)
}

/// Compare-and-set of a lease's state.
pub(super) fn transition(
    tx: &mut Transaction<'_>,
    lease: LeaseId,
    from: &State,
    to: &State,
    kept: Option<&Sealed>,
    entry: Option<&Entry>,
) -> Result<bool, Fault> {
    let was = rows::set_state(tx.conn, lease, from, to, kept)?;
    if was && let Some(entry) = entry {
        tx.append(entry)?;
    }
    Ok(was)
}

/// Has leases keep something else, where they still keep what was read.
pub(super) fn reseal(tx: &mut Transaction<'_>, changes: &[(LeaseId, Sealed, Sealed)]) -> Result<usize, Fault> {
    let mut count = 0;
    for (lease, old, new) in changes {
        let sql = "UPDATE leases SET sealed = ?1 WHERE id = ?2 AND sealed = ?3";
        count += tx.conn.prepare_cached(sql)?.execute(params![new.bytes(), lease.as_bytes(), old.bytes()])?;
    }
    Ok(count)
}

/// Ends leases of one backend whose credentials ended by themselves; one entry for all of them.
pub(super) fn expire(
    tx: &mut Transaction<'_>,
    backend: &BackendName,
    now: Timestamp,
    limit: usize,
) -> Result<usize, Fault> {
    let ended = rows::detail(&State::Ended { how: Ending::Expired, at: now })?;
    let sql = "UPDATE leases SET state = 4, at = ?1, detail = ?2 WHERE id IN (SELECT id FROM leases INDEXED BY \
         leases_due WHERE backend = ?3 AND at <= ?1 AND state < 4 AND state = 1 AND revocability = 0 LIMIT ?4)";
    let params = params![now.millis(), ended, backend.as_str(), limit];
    let mut count = tx.conn.prepare_cached(sql)?.execute(params)?;
    let rest = "INDEXED BY leases_due WHERE backend = ?1 AND at <= ?2 AND state < 4 AND state = 3 LIMIT ?3";
    for lease in rows::find_leases(tx.conn, rest, params![backend.as_str(), now.millis(), limit])? {
        let State::Outliving { because, .. } = lease.state else { continue };
        let ended = State::Ended { how: because, at: now };
        rows::set_state(tx.conn, lease.id, &lease.state, &ended, None)?;
        count += 1;
    }
    if count > 0 {
        let mut entry = Entry::new(now, Event::Ended);
        entry.backend = Some(backend.clone());
        entry.reason = Some("expired".to_owned());
        entry.count = u64::try_from(count).ok();
        tx.append(&entry)?;
    }
    Ok(count)
}

/// Freezes or thaws; what is frozen then goes to memory with the commit.
pub(super) fn freeze(
    tx: &mut Transaction<'_>,
    target: &FreezeTarget,
    reason: Option<&str>,
    entry: &Entry,
) -> Result<(), Fault> {
    let (kind, name) = match target {
        FreezeTarget::All => ("all", ""),
        FreezeTarget::Issuer(name) => ("issuer", name.as_str()),
        FreezeTarget::Grant(name) => ("grant", name.as_str()),
    };
    match reason {
        Some(reason) => tx.conn.execute("INSERT OR REPLACE INTO freezes VALUES (?1, ?2, ?3)", (kind, name, reason))?,
        None => tx.conn.execute("DELETE FROM freezes WHERE kind = ?1 AND name = ?2", (kind, name))?,
    };
    tx.append(entry)?;
    tx.freezes = Some(freezes(tx.conn)?);
    Ok(())
}

/// What is frozen.
pub(super) fn freezes(conn: &Connection) -> Result<Freezes, Fault> {
    let mut freezes = Freezes::default();
    let mut statement = conn.prepare_cached("SELECT kind, name, reason FROM freezes")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let (name, reason): (String, String) = (row.get(1)?, row.get(2)?);
        match row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)? {
            "all" => freezes.all = Some(reason),
            "issuer" => drop(freezes.issuers.insert(IssuerName::parse(&name).map_err(rows::corrupt)?, reason)),
            "grant" => drop(freezes.grants.insert(GrantName::parse(&name).map_err(rows::corrupt)?, reason)),
            other => return Err(rows::corrupt(format!("a freeze of kind `{other}`"))),
        }
    }
    Ok(freezes)
}

/// Forgets streams that are gone, and has [`prune`] wait for those that are new.
pub(super) fn keep_for_streams(tx: &Transaction<'_>, streams: &[&'static str]) -> Result<(), Fault> {
    let rows: Vec<String> = streams.iter().map(|stream| format!("stream:{stream}")).collect();
    let known = {
        let mut statement = tx.conn.prepare("SELECT name FROM progress WHERE name LIKE 'stream:%'")?;
        let names = statement.query_map([], |row| row.get::<_, String>(0))?;
        names.collect::<Result<Vec<_>, _>>()?
    };
    for gone in known.iter().filter(|name| !rows.contains(name)) {
        tx.conn.execute("DELETE FROM progress WHERE name = ?1", [gone])?;
    }
    for new in rows.iter().filter(|name| !known.contains(name)) {
        tx.conn.execute("INSERT INTO progress VALUES (?1, 0)", [new])?;
    }
    Ok(())
}

/// Rows that one step of [`prune`] looks at, per table.
const PRUNE_STEP: usize = 1000;

/// Forgets some of what is no longer needed; returns how many rows.
pub(super) fn prune(
    tx: &mut Transaction<'_>,
    now: Timestamp,
    ended_before: Timestamp,
    audited_before: Option<Timestamp>,
) -> Result<usize, Fault> {
    let mut count = 0;
    // All are kept equally long, but for a change of that time in between: then some wait for those before them.
    let expired: Vec<_> = tx.tokens()?.expired(now.secs()).take(PRUNE_STEP).collect();
    for token in &expired {
        if !rows::forget_used(tx, *token, now.secs())? {
            break;
        }
        count += 1;
    }
    if let Some((last, _)) = expired[..count].last() {
        rows::put_forgotten(tx.conn, last.expires)?;
    }

    // Lease ids are UUIDs of version 7: their first 48 bits are the time.
    let mut floor = [0; 16];
    floor[..6].copy_from_slice(&ended_before.millis().max(0).to_be_bytes()[2..]);
    let sql = "DELETE FROM leases WHERE id IN (SELECT id FROM leases WHERE id < ?1 AND state = 4 AND at < ?2 LIMIT ?3) \
         RETURNING id";
    let mut statement = tx.conn.prepare_cached(sql)?;
    let ids =
        statement.query_map(params![floor, ended_before.millis(), PRUNE_STEP], |row| row.get::<_, [u8; 16]>(0))?;
    for id in ids.collect::<Result<Vec<_>, _>>()? {
        count += 1 + tx.conn.prepare_cached("DELETE FROM spent WHERE lease = ?1")?.execute([id])?;
    }

    if let Some(before) = audited_before {
        // The last entry stays: the chain goes on from it. So do a stream's last entry and all after it.
        let sql = "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit WHERE seq < (SELECT max(seq) FROM audit) \
             AND seq < (SELECT min(value) FROM progress WHERE name LIKE 'stream:%') ORDER BY seq LIMIT ?2) AND at < ?1";
        count += tx.conn.prepare_cached(sql)?.execute(params![before.millis(), PRUNE_STEP])?;
    }
    Ok(count)
}

/// Whether a token gives the right to one more exchange: its row as it is to be written, and the lease
/// whose answer was lost.
fn bind(
    tx: &mut Transaction<'_>,
    binding: &Binding,
    lease: LeaseId,
) -> Result<Result<(Used, Option<LeaseId>), Refusal>, Fault> {
    let now = tx.now;
    let request = |key: &Hash| Request { key: half(key), lease, first_at: now, retries: 0 };
    let tokens = tx.tokens()?;
    let Some(row) = tokens.row(&binding.token) else {
        if tokens.is_forgotten(&binding.token) {
            return Ok(Err(Refusal::Spent));
        }
        let requests = binding.session.and(binding.request.as_ref()).map(request).into_iter().collect();
        return Ok(Ok((Used { session: binding.session, closed: false, uses: 1, requests }, None)));
    };
    let mut used = rows::read_used(tx.conn, &binding.token, row)?;
    match (&used.session, &binding.session) {
        (Some(holder), Some(session)) if same(holder, session) => {}
        _ => return Ok(Err(Refusal::Spent)),
    }
    if used.closed {
        return Ok(Err(Refusal::SessionClosed));
    }
    let Some(key) = &binding.request else {
        return Ok(count_use(used, binding.max_uses));
    };
    match used.requests.iter_mut().find(|request| request.key == half(key)) {
        Some(again) if u32::from(again.retries) >= MAX_RETRIES || now > again.first_at + RETRY_WINDOW => {
            Ok(Err(Refusal::RetriesExhausted))
        }
        Some(again) => {
            let lost = std::mem::replace(&mut again.lease, lease);
            again.retries += 1;
            Ok(Ok((used, Some(lost))))
        }
        None => {
            used.requests.push(request(key));
            Ok(count_use(used, binding.max_uses))
        }
    }
}

fn count_use(mut used: Used, max_uses: u32) -> Result<(Used, Option<LeaseId>), Refusal> {
    if used.uses >= max_uses {
        return Err(Refusal::UsesExhausted);
    }
    used.uses += 1;
    Ok((used, None))
}

/// A handle that gives a right.
struct Turn {
    /// Its lease, which is active.
    lease: Lease,
    /// Where the handle was spent before: that time, and what it opened then.
    before: Option<(Spent, Lease)>,
}

/// Whether a handle gives a right. When it was spent before and is not asked again for a lost answer,
/// somebody else may hold the family, and all of it is taken back.
fn turn(tx: &mut Transaction<'_>, rotation: &Rotation) -> Result<Result<Turn, Refusal>, Fault> {
    let Some((lease, present)) = rows::find_lease(tx.conn, rotation.lease)? else {
        return Ok(Err(Refusal::HandleUnknown));
    };
    let live = matches!(lease.state, State::Active { expires_at } if expires_at > tx.now);
    let over = !live || lease.family.ends_at <= tx.now;
    let exhausted = lease.family.renewals >= MAX_RENEWALS;
    if same(&present, &rotation.presented) {
        return Ok(match (over, exhausted) {
            (true, _) => Err(Refusal::LeaseOver),
            (false, true) => Err(Refusal::RenewalsExhausted),
            (false, false) => Ok(Turn { lease, before: None }),
        });
    }
    let spent = rows::find_spent(tx.conn, lease.id)?;
    let Some(spent) = spent.into_iter().find(|spent| same(&spent.handle, &rotation.presented)) else {
        return Ok(Err(Refusal::HandleUnknown));
    };
    let Some((opened, given)) = rows::find_lease(tx.conn, spent.opened)? else {
        return Ok(Err(Refusal::LeaseOver));
    };
    // Where nothing came to be, nobody was given anything for the handle.
    let void = because(&opened.state) == Some(Ending::Abandoned);
    let asked_again = matches!((&spent.request, &rotation.request), (Some(first), Some(again)) if same(first, again))
        && spent.retries < MAX_RENEWAL_RETRIES
        && tx.now <= spent.at + RETRY_WINDOW
        && same(&given, &spent.given);
    if !void && !asked_again {
        let members = family(tx.conn, lease.id)?;
        take_all_back(tx, members, Ending::HandleReused, None)?;
        return Ok(Err(Refusal::HandleReused));
    }
    // Revoke wins over renew.
    let taken = because(&opened.state).is_some_and(|why| why != Ending::Abandoned);
    if over || taken {
        return Ok(Err(Refusal::LeaseOver));
    }
    if exhausted {
        return Ok(Err(Refusal::RenewalsExhausted));
    }
    Ok(Ok(Turn { lease, before: Some((spent, opened)) }))
}

/// Spends a handle for `given`, which `opened` has from now on. Returns what it was spent for before:
/// leases whose answers were lost.
fn rotate(
    tx: &Transaction<'_>,
    turn: Turn,
    rotation: &Rotation,
    opened: LeaseId,
    given: &Hash,
) -> Result<Vec<Lease>, Fault> {
    let lease = turn.lease.id;
    let handle: &[u8] = if opened == lease { given } else { &[] };
    rows::set_handle(tx.conn, lease, handle, turn.lease.family.renewals + 1)?;
    let spent =
        Spent { handle: rotation.presented, request: rotation.request, opened, given: *given, at: tx.now, retries: 0 };
    let Some((before, lost)) = turn.before else {
        rows::put_spent(tx.conn, lease, &spent)?;
        return Ok(Vec::new());
    };
    let void = because(&lost.state) == Some(Ending::Abandoned);
    let (at, retries) = if void { (tx.now, 0) } else { (before.at, before.retries + 1) };
    rows::put_spent(tx.conn, lease, &Spent { at, retries, ..spent })?;
    if lost.id == lease {
        // The lost answer's handle was this lease's own; whoever comes with it has seen that answer.
        let lost_handle = Spent { handle: before.given, request: None, opened, given: *given, at: tx.now, retries: 0 };
        rows::put_spent(tx.conn, lease, &lost_handle)?;
        return Ok(Vec::new());
    }
    Ok(vec![lost])
}

/// Why a lease is over, or on its way there.
const fn because(state: &State) -> Option<Ending> {
    match state {
        State::Pending { .. } | State::Active { .. } => None,
        State::Revoking { because, .. } | State::Outliving { because, .. } => Some(*because),
        State::Ended { how, .. } => Some(*how),
    }
}

/// The leases of the family that a lease belongs to: its first one, the lease itself, and all that did not end.
pub(super) fn family(conn: &Connection, id: LeaseId) -> Result<Vec<Lease>, Fault> {
    let sql = "SELECT ifnull(root, id) FROM leases WHERE id = ?1";
    let root: Option<[u8; 16]> = conn.prepare_cached(sql)?.query_row([id.as_bytes()], |row| row.get(0)).optional()?;
    // The root may be pruned already, and its children not.
    let root = root.unwrap_or(*id.as_bytes());
    let named = "WHERE id = ?1 OR (id = ?2 AND state = 4)";
    let mut leases = rows::find_leases(conn, named, params![root, id.as_bytes()])?;
    leases.extend(rows::find_leases(conn, "INDEXED BY leases_family WHERE root = ?1 AND state < 4", [root])?);
    Ok(leases)
}

/// Takes back what is not yet on its way out; returns those.
fn take_all_back(
    tx: &mut Transaction<'_>,
    leases: Vec<Lease>,
    because: Ending,
    actor: Option<&str>,
) -> Result<Vec<Lease>, Fault> {
    let mut taken = Vec::new();
    for mut lease in leases {
        if take_back(tx, &mut lease, because, tx.now, actor)? {
            taken.push(lease);
        }
    }
    Ok(taken)
}

fn take_back(
    tx: &mut Transaction<'_>,
    lease: &mut Lease,
    because: Ending,
    at: Timestamp,
    actor: Option<&str>,
) -> Result<bool, Fault> {
    let Some(next) = lease.state.take_back(lease.placement.revocability, at, because) else { return Ok(false) };
    rows::set_state(tx.conn, lease.id, &lease.state, &next, None)?;
    lease.state = next;
    let mut entry = Entry::of_lease(lease, at);
    entry.actor = actor.map(str::to_owned);
    tx.append(&entry)?;
    Ok(true)
}

fn kept_for(binding: &Binding) -> i64 {
    binding.keep_until.secs().saturating_sub(binding.token.expires)
}

fn half(hash: &Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

fn same(one: &[u8], other: &[u8]) -> bool {
    bool::from(one.ct_eq(other))
}
