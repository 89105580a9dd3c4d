//! Finding the entries of one decision. Decision ids grow with time and so does the log, so that it
//! needs no index: a search by halves, then a short read.

use super::Line;
use crate::{
    clock::Timestamp,
    store::{Store, StoreError},
};
use jobpass_protocol::DecisionId;
use serde::Deserialize;
use std::time::Duration;

/// Entries are written in the order in which their work got done, up to so long after their decision:
/// a minute when they are folded, and what it takes beyond that.
const DISORDER: Duration = Duration::from_secs(120);
/// How many entries are read at a time.
const PAGE: usize = 1000;

#[derive(Deserialize)]
struct When {
    at: String,
}

/// The audit entries of a decision, as JSON texts in the order of the log: none, if the decision is not
/// in the store any more, or was one of very many that were folded.
///
/// # Errors
/// When the store cannot be read.
pub async fn entries_of(store: &dyn Store, decision: DecisionId) -> Result<Vec<String>, StoreError> {
    let made = decision.uuid().get_timestamp().map(|at| at.to_unix()).unwrap_or_default();
    let made = Timestamp::from_secs(i64::try_from(made.0).unwrap_or(i64::MAX));
    let (mut before, mut last) = (0, store.audit_head().borrow().seq);
    while before < last {
        let middle = before + (last - before) / 2;
        match store.audit(middle, 1).await?.first() {
            Some(line) if when(line)? < made - DISORDER => before = line.link.seq,
            _ => last = middle,
        }
    }
    let (name, mut found) = (decision.to_string(), Vec::new());
    loop {
        let page = store.audit(before, PAGE).await?;
        let Some(end) = page.last() else { return Ok(found) };
        let is_over = when(end)? > made + DISORDER;
        before = end.link.seq;
        found.extend(page.iter().filter(|line| line.entry.contains(&name)).map(|line| line.entry.to_string()));
        if is_over {
            return Ok(found);
        }
    }
}

fn when(line: &Line) -> Result<Timestamp, StoreError> {
    let corrupt = |error: &dyn std::fmt::Display| StoreError::Corrupt(error.to_string());
    let when: When = serde_json::from_str(&line.entry).map_err(|error| corrupt(&error))?;
    let at: jiff::Timestamp = when.at.parse().map_err(|error| corrupt(&error))?;
    Ok(Timestamp::from_millis(at.as_millisecond()))
}
