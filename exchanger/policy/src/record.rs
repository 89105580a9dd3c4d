//! Lines of the audit log, as far as policies are concerned.

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny},
};
use serde_json::{Map, Value as Json};
use std::collections::HashSet;

/// Why a line is not one of the audit log.
#[derive(Debug, thiserror::Error)]
#[error("not an entry of the audit log: {0}")]
pub struct RecordError(#[from] serde_json::Error);

/// One entry of the audit log; what is not of interest here is left out.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    #[serde(deserialize_with = "moment")]
    pub(crate) at: Timestamp,
    pub(crate) event: String,
    pub(crate) decision_id: Option<String>,
    pub(crate) lease_id: Option<String>,
    pub(crate) grant: Option<String>,
    pub(crate) rule: Option<String>,
    pub(crate) issuer: Option<String>,
    pub(crate) claims: Option<Map<String, Json>>,
    pub(crate) reason: Option<String>,
    pub(crate) trace: Option<Json>,
    /// How many were folded into it.
    #[serde(default = "one")]
    pub(crate) count: u64,
}

fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn one() -> u64 {
    1
}

/// The records of permits, one for each decision. A credential that is made elsewhere has two: that it was
/// permitted, and that it came to be.
pub(crate) fn permits(records: &[Record]) -> impl Iterator<Item = &Record> {
    let mut known = HashSet::new();
    records.iter().filter(move |record| {
        matches!(&*record.event, "permitted" | "issued" | "renewed")
            && record.rule.is_some()
            && record.decision_id.as_deref().is_none_or(|id| known.insert(id))
    })
}

impl Record {
    /// Reads a line: an entry, or a link of the chain with an entry in it. A signed head of the chain
    /// holds none.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn parse(line: &str) -> Result<Option<Self>, RecordError> {
        #[derive(Deserialize)]
        struct Line {
            entry: Option<Record>,
            head: Option<IgnoredAny>,
        }
        match serde_json::from_str(line)? {
            Line { entry: Some(entry), .. } => Ok(Some(entry)),
            Line { head: Some(_), .. } => Ok(None),
            Line { .. } => Ok(Some(serde_json::from_str(line)?)),
        }
    }

    /// When it was recorded, in epoch seconds.
    #[must_use]
    pub fn at(&self) -> i64 {
        self.at.as_second()
    }
}
