//! The newest lines of the audit log, kept in memory for the streams that follow it closely: what was
//! just written need not be read back.

use crate::audit::Line;
use std::collections::VecDeque;

/// Text that is kept at most: some tenths of a second of a busy server.
const MOST_BYTES: usize = 2 << 20;

/// Lines without a gap between them, all of them durable.
#[derive(Default)]
pub(super) struct Recent {
    lines: VecDeque<Line>,
    bytes: usize,
}

impl Recent {
    /// Adds lines that are durable now.
    pub(super) fn add(&mut self, lines: Vec<Line>) {
        for line in lines {
            if self.lines.back().is_some_and(|last| last.link.hash != line.prev) {
                *self = Self::default();
            }
            self.bytes += line.entry.len();
            self.lines.push_back(line);
        }
        while self.bytes > MOST_BYTES
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.entry.len();
        }
    }

    /// The first `limit` lines after number `seq`, when all of them are here.
    pub(super) fn after(&self, seq: u64, limit: usize) -> Option<Vec<Line>> {
        let first = self.lines.front()?.link.seq;
        let passed = usize::try_from(seq.checked_add(1)?.checked_sub(first)?).ok()?;
        (passed <= self.lines.len()).then(|| self.lines.iter().skip(passed).take(limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Link;

    fn lines(from: &mut Link, entries: impl IntoIterator<Item = String>) -> Vec<Line> {
        let next = |entry: String| {
            let prev = std::mem::replace(from, from.next(&entry));
            Line { link: *from, prev: prev.hash, entry: entry.into() }
        };
        entries.into_iter().map(next).collect()
    }

    fn check(recent: &Recent, after: u64, limit: usize, expected: Option<&[u64]>) {
        let found = recent.after(after, limit).map(|lines| lines.iter().map(|line| line.link.seq).collect::<Vec<_>>());
        assert_eq!(found.as_deref(), expected, "after {after}");
    }

    #[test]
    fn only_what_is_here_without_a_gap_is_told() {
        let (mut recent, mut end) = (Recent::default(), Link { seq: 6, hash: [7; 32] });
        check(&recent, 0, 9, None);
        recent.add(lines(&mut end, ["a", "b", "c"].map(str::to_owned)));
        for (after, expected) in [(5, None), (6, Some(&[7, 8, 9][..])), (8, Some(&[9])), (9, Some(&[])), (10, None)] {
            check(&recent, after, 9, expected);
        }
        check(&recent, 6, 2, Some(&[7, 8]));
        // Something else wrote an entry in between.
        end.seq += 1;
        end.hash = [8; 32];
        recent.add(lines(&mut end, ["d".to_owned()]));
        check(&recent, 9, 9, None);
        check(&recent, 10, 9, Some(&[11]));
    }

    #[test]
    fn old_lines_make_room() {
        let (mut recent, mut end) = (Recent::default(), Link::START);
        recent.add(lines(&mut end, (0..5).map(|_| "x".repeat(MOST_BYTES / 2))));
        check(&recent, 3, 9, Some(&[4, 5]));
        check(&recent, 2, 9, None);
    }
}
