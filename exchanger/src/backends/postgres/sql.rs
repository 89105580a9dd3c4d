//! SQL text. The only module that puts values into statements: utility statements such as
//! `CREATE ROLE` take no parameters, so each value is quoted here or refused, and never trimmed.

use crate::clock::Timestamp;
use std::{fmt, time::Duration};

/// A name in PostgreSQL (documentation, "Identifiers and Key Words"). Shown quoted.
///
/// INVARIANT: 1 to 63 bytes, no NUL. The server would cut a longer one short, and mean another role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identifier(String);

/// The text cannot be a name in PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a name of 1 to 63 bytes without NUL")]
pub(super) struct NotAnIdentifier;

impl Identifier {
    pub(super) fn parse(text: &str) -> Result<Self, NotAnIdentifier> {
        if (1..=63).contains(&text.len()) && !text.contains('\0') {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAnIdentifier)
        }
    }

    /// The name itself, not quoted.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// A string constant. The escape form says the same whatever `standard_conforming_strings` is.
///
/// NUL cannot stand in a constant at all; the wire protocol refuses the whole statement.
pub(super) fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

/// What a new login role is made of.
pub(super) struct NewRole<'a> {
    pub(super) name: &'a Identifier,
    pub(super) member_of: &'a [Identifier],
    /// What else is to be done in the same transaction.
    pub(super) more: &'a [String],
    pub(super) verifier: &'a str,
    pub(super) connection_limit: u16,
    pub(super) valid_until: Timestamp,
    pub(super) comment: &'a str,
    /// How long it waits for each thing that a session may hold.
    pub(super) patience: Duration,
    /// By the server's own clock; from then on the transaction fails.
    pub(super) not_after: Timestamp,
}

impl NewRole<'_> {
    /// Statements for one simple query, which PostgreSQL runs as one transaction ("Multiple Statements in
    /// a Simple Query"). The last one divides by zero when the time is over, so that a creation that was
    /// held up on its way comes to nothing. It also tells the server's time.
    pub(super) fn statements(&self) -> String {
        let roles: Vec<String> = self.member_of.iter().map(Identifier::to_string).collect();
        let roles = if roles.is_empty() { String::new() } else { format!(" IN ROLE {}", roles.join(", ")) };
        let more: String = self.more.iter().map(|statement| format!("{statement}; ")).collect();
        format!(
            "{patience}; CREATE ROLE {name} LOGIN INHERIT CONNECTION LIMIT {limit} PASSWORD {verifier} VALID UNTIL '{until}'\
             {roles}; COMMENT ON ROLE {name} IS {comment}; {more}SELECT {NOW}, 1 / (clock_timestamp() < '{not_after}'::timestamptz)::int",
            patience = lock_timeout(self.patience),
            name = self.name,
            limit = self.connection_limit,
            verifier = literal(self.verifier),
            until = self.valid_until,
            comment = literal(self.comment),
            not_after = self.not_after,
        )
    }
}

/// How long the transaction that it begins waits for each lock. Zero would be for ever.
pub(super) fn lock_timeout(within: Duration) -> String {
    format!("SET LOCAL lock_timeout = {}", within.as_millis().max(1))
}

/// The server's time, in epoch milliseconds.
pub(super) const NOW: &str = "(extract(epoch from clock_timestamp()) * 1000)::bigint";

/// Closes the door: nobody logs in with the role any more. It need not survive a crash of the server,
/// because the role is dropped, or this is done again.
pub(super) fn lock_out(role: &Identifier) -> String {
    format!("SET LOCAL synchronous_commit = off; ALTER ROLE {role} NOLOGIN VALID UNTIL '-infinity'")
}

/// What the role still holds on to: a row of nothing for each open session and prepared transaction, then a row
/// for each database where it owns something or was granted something (`pg_shdepend` is one catalogue for the whole
/// cluster). In this order: who is no longer at work owns nothing more later. Statements of their own, of which
/// none reads `pg_stat_activity`: PostgreSQL plans these in less than half of the time.
pub(super) fn holdings(role: &Identifier) -> String {
    let (name, quoted) = (literal(role.as_str()), literal(&role.to_string()));
    format!(
        "SELECT NULL FROM pg_stat_get_backend_idset() AS backend (id) \
         WHERE pg_stat_get_backend_userid(backend.id) = to_regrole({quoted}); \
         SELECT NULL FROM pg_prepared_xacts WHERE owner = {name}; \
         SELECT DISTINCT coalesce((SELECT datname FROM pg_database d WHERE d.oid = s.dbid), current_database()) \
         FROM pg_shdepend s WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = to_regrole({quoted})"
    )
}

/// Lets us act for the role: its sessions and objects are its members' to end. Whoever made the role may.
pub(super) fn become_member(role: &Identifier) -> String {
    format!("GRANT {role} TO CURRENT_USER")
}

/// Ends the role's sessions and waits until they are over, each for `wait_ms` at most.
pub(super) fn terminate(role: &Identifier, wait_ms: u64) -> String {
    format!(
        "SELECT pg_terminate_backend(pid, {wait_ms}) FROM pg_stat_activity WHERE usename = {}",
        literal(role.as_str())
    )
}

/// The transactions that the role prepared (two-phase commit), each with its database.
pub(super) fn prepared(role: &Identifier) -> String {
    format!("SELECT gid, database FROM pg_prepared_xacts WHERE owner = {}", literal(role.as_str()))
}

/// Acts as the role from here on.
pub(super) fn become_role(role: &Identifier) -> String {
    format!("SET ROLE {role}")
}

/// Ends a prepared transaction; only its role may, in its database.
pub(super) fn roll_back(prepared: &str) -> String {
    format!("ROLLBACK PREPARED {}", literal(prepared))
}

/// Hands the data that the role owns in this database to `heir`; see there.
const BEQUEST: &str = include_str!("bequest.sql");

/// Drops what the role owns in this database, but for the data that goes to `heir`; takes back what it was granted.
pub(super) fn disown(role: &Identifier, heir: Option<&Identifier>) -> String {
    let bequeath = heir.map(|heir| {
        let (role, heir) = (literal(role.as_str()), literal(heir.as_str()));
        format!("SET LOCAL jobpass.role = {role}; SET LOCAL jobpass.heir = {heir}; {BEQUEST}; ")
    });
    format!("{}DROP OWNED BY {role} CASCADE", bequeath.unwrap_or_default())
}

/// Takes from the role the roles that it is a member of, as far as they are ours to take.
pub(super) fn expel(role: &Identifier) -> String {
    let name = literal(role.as_str());
    format!(
        "DO $expel$ DECLARE held name; BEGIN \
         FOR held IN SELECT pg_get_userbyid(roleid) FROM pg_auth_members WHERE pg_get_userbyid(member) = {name} LOOP \
         BEGIN EXECUTE format('REVOKE %I FROM %I', held, {name}); EXCEPTION WHEN insufficient_privilege THEN NULL; END; \
         END LOOP; END $expel$"
    )
}

/// Removes the role.
pub(super) fn drop_role(role: &Identifier) -> String {
    format!("DROP ROLE {role}")
}

/// Moves the role's end.
pub(super) fn extend(role: &Identifier, until: Timestamp) -> String {
    format!("ALTER ROLE {role} VALID UNTIL '{until}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        for (text, expected) in [
            ("app", Some(r#""app""#)),
            ("App Role", Some(r#""App Role""#)),
            (r#"a"; DROP ROLE x; --"#, Some(r#""a""; DROP ROLE x; --""#)),
            (r"a\b'c", Some(r#""a\b'c""#)),
            ("línea\nnueva", Some("\"línea\nnueva\"")),
            ("роль", Some("\"роль\"")),
            ("", None),
            ("a\0b", None),
            (&"x".repeat(63), Some(format!("\"{}\"", "x".repeat(63)).as_str())),
            (&"x".repeat(64), None),
            (&"é".repeat(32), None),
        ] {
            assert_eq!(Identifier::parse(text).map(|i| i.to_string()).ok().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn literals() {
        for (text, expected) in [("a", "'a'"), ("it's", "'it''s'"), (r"a\'b", r" E'a\\''b'"), ("\n\"$$", "'\n\"$$'")] {
            assert_eq!(literal(text), expected);
        }
    }
}
