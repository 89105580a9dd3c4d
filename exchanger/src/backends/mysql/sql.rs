//! SQL text. The only module that puts values into statements: `CREATE USER` and `GRANT` take no
//! parameters, so each value is quoted here or refused, and never trimmed.

use std::fmt;

/// The name of a database or a table (MariaDB, "Identifier Names"). Shown quoted.
///
/// INVARIANT: 1 to 64 characters of the Basic Multilingual Plane, no NUL, no space at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identifier(String);

/// The text cannot be a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a name of 1 to 64 characters, without NUL, emoji and a space at its end")]
pub(super) struct NotAnIdentifier;

impl Identifier {
    pub(super) fn parse(text: &str) -> Result<Self, NotAnIdentifier> {
        let possible = text.chars().all(|c| c != '\0' && c <= '\u{ffff}');
        if possible && (1..=64).contains(&text.chars().count()) && !text.ends_with(' ') {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAnIdentifier)
        }
    }

    /// The name where `GRANT` takes it for a pattern: on a whole database `%` and `_` stand for anything.
    fn as_pattern(&self) -> Self {
        Self(self.0.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"))
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0.replace('`', "``"))
    }
}

/// A string constant. Our sessions have no `NO_BACKSLASH_ESCAPES` and no `ANSI_QUOTES`.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A user with the hosts that it may come from. Shown quoted.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) host: String,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", literal(&self.name), literal(&self.host))
    }
}

/// What is granted on one database or table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Privileges {
    pub(super) names: Vec<&'static str>,
    pub(super) database: Identifier,
    pub(super) table: Option<Identifier>,
}

impl Privileges {
    /// The statement that grants them.
    pub(super) fn grant(&self, account: &dyn fmt::Display) -> String {
        let names = self.names.join(", ");
        match &self.table {
            Some(table) => format!("GRANT {names} ON {}.{table} TO {account}", self.database),
            None => format!("GRANT {names} ON {}.* TO {account}", self.database.as_pattern()),
        }
    }
}

/// The statement that makes a user who may do nothing yet. `comment` is for MySQL, which has a place for it.
pub(super) fn create(account: &Account, password: &str, tls: bool, connections: u16, comment: Option<&str>) -> String {
    let require = if tls { " REQUIRE SSL" } else { "" };
    let comment = comment.map(|text| format!(" COMMENT {}", literal(text))).unwrap_or_default();
    format!(
        "CREATE USER {account} IDENTIFIED BY {}{require} WITH MAX_USER_CONNECTIONS {connections}{comment}",
        literal(password)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        for (text, expected, pattern) in [
            ("app", Some("`app`"), "`app`"),
            ("a`; DROP USER x; --", Some("`a``; DROP USER x; --`"), "`a``; DROP USER x; --`"),
            (r"a\b'c", Some(r"`a\b'c`"), r"`a\\b'c`"),
            ("app_1%", Some("`app_1%`"), r"`app\_1\%`"),
            ("база\nx", Some("`база\nx`"), "`база\nx`"),
            ("", None, ""),
            ("a\0b", None, ""),
            ("a ", None, ""),
            ("\u{1f419}", None, ""),
            (&"я".repeat(65), None, ""),
        ] {
            let parsed = Identifier::parse(text).ok();
            assert_eq!(parsed.as_ref().map(ToString::to_string).as_deref(), expected, "{text:?}");
            if let Some(parsed) = parsed {
                assert_eq!(parsed.as_pattern().to_string(), pattern, "{text:?}");
            }
        }
    }

    #[test]
    fn literals() {
        for (text, expected) in [("a", "'a'"), ("it's", "'it''s'"), (r"a\'b", r"'a\\''b'"), ("\n\"%", "'\n\"%'")] {
            assert_eq!(literal(text), expected);
        }
    }
}
