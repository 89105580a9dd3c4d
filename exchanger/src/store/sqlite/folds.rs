//! Folding: what repeats within a minute costs a counter, and one entry when the minute is over.

use crate::{
    audit::Entry,
    clock::Timestamp,
    store::{Fold, Hash},
};
use jobpass_protocol::DecisionId;
use std::{collections::HashMap, time::Duration};

const WINDOW: Duration = Duration::from_secs(60);
/// What a window may still take: entries that come at once may be some way out of order.
const LONGEST: Duration = Duration::from_secs(120);
/// More kinds at a time than this, and all windows end early.
const MAX_WINDOWS: usize = 1024;
/// Kinds that somebody's entries have at a time; the rest share a window.
const MAX_KINDS: usize = 8;
/// Decisions of a window that are kept by name: a person who quotes one of them is helped.
const MAX_DECISIONS: usize = 64;

struct Window {
    of: Hash,
    /// Whether it is of entries of all kinds.
    shared: bool,
    until: Timestamp,
    last: Entry,
    count: u64,
    decisions: Vec<DecisionId>,
}

/// Entries that are being counted instead of written.
#[derive(Default)]
pub(super) struct Folds {
    windows: HashMap<Hash, Window>,
    over: Vec<Entry>,
}

impl Folds {
    /// Whether nothing waits to be written or forgotten.
    pub(super) fn is_empty(&self) -> bool {
        self.windows.is_empty() && self.over.is_empty()
    }

    /// Counts the entry if one like it was written within the last minute. Else it is to be written, and
    /// opens the window that is named.
    pub(super) fn fold(&mut self, Fold { key, of }: Fold, entry: &Entry) -> Option<Hash> {
        let kinds = || self.windows.values().filter(|window| window.of == of && !window.shared).count();
        let shared = !self.windows.contains_key(&key) && kinds() >= MAX_KINDS;
        let key = if shared { of } else { key };
        if let Some(window) = self.windows.get_mut(&key)
            && !window.until.is_over(entry.at, LONGEST)
        {
            window.count += 1;
            if window.decisions.len() < MAX_DECISIONS {
                window.decisions.extend(entry.decision_id);
            }
            window.last = entry.clone();
            return None;
        }
        if let Some(window) = self.windows.remove(&key) {
            self.over.extend(window.into_entry());
        }
        if self.windows.len() >= MAX_WINDOWS {
            self.over.extend(self.windows.drain().filter_map(|(_, window)| window.into_entry()));
        }
        let (until, last) = (entry.at + WINDOW, entry.clone());
        self.windows.insert(key, Window { of, shared, until, last, count: 0, decisions: Vec::new() });
        Some(key)
    }

    /// The first entry of a window could not be written: the next one is the first.
    pub(super) fn forget(&mut self, key: &Hash) {
        self.windows.remove(key);
    }

    /// What has to be written now.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Vec<Entry> {
        let over = self.windows.extract_if(|_, window| window.until.is_over(now, LONGEST));
        self.over.extend(over.filter_map(|(_, window)| window.into_entry()));
        std::mem::take(&mut self.over)
    }

    /// All that was counted, before its time.
    pub(super) fn take_all(&mut self) -> Vec<Entry> {
        self.over.extend(self.windows.drain().filter_map(|(_, window)| window.into_entry()));
        std::mem::take(&mut self.over)
    }

    /// What was taken and could not be written.
    pub(super) fn put_back(&mut self, entries: Vec<Entry>) {
        self.over.extend(entries);
    }
}

impl Window {
    fn into_entry(self) -> Option<Entry> {
        let Self { mut last, count, decisions, shared, .. } = self;
        if shared {
            // Those that it stands for were about others too.
            (last.grant, last.trace, last.reason) = (None, None, Some("several".to_owned()));
        }
        (count > 0).then_some(Entry { count: Some(count), decisions, ..last })
    }
}
