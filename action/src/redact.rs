//! A filter that replaces every spelling of every secret in a stream, however the stream is cut.
//!
//! Each byte that belongs to any occurrence of any needle is hidden, so overlapping secrets leave
//! no tail. Only bytes that could still become part of an occurrence are held back; when there are
//! none, all that came in has gone out. Never sees where the bytes come from or go to.

use crate::mask::Needles;
use aho_corasick::{
    Anchored, MatchKind,
    automaton::{Automaton, StateID},
    nfa::noncontiguous::NFA,
};
use std::collections::VecDeque;

/// What stands in the place of a secret.
pub(crate) const REPLACEMENT: &[u8] = b"***";
/// From so many characters on, a line break within an encoded secret is taken for wrapping.
const WRAPS_FROM: u32 = 4;

/// The needles, ready to be searched for.
pub(crate) struct Redactor(Vec<Machine>);

impl Redactor {
    /// Prepares the search.
    ///
    /// # Errors
    /// When there are more needles than fit into memory's addresses.
    pub(crate) fn new(needles: &Needles) -> Result<Self, aho_corasick::BuildError> {
        let exact: Vec<&[u8]> = needles.exact().collect();
        let wrapped: Vec<&[u8]> = needles.wrapped().collect();
        Ok(Self(vec![Machine::new(&exact, false)?, Machine::new(&wrapped, true)?]))
    }

    /// Begins to filter one stream.
    pub(crate) fn filter(&self) -> Filter<'_> {
        let cursors = self.0.iter().map(|machine| Cursor { state: machine.start, breaks: VecDeque::new() }).collect();
        Filter { machines: &self.0, cursors, held: VecDeque::new(), end: 0, hiding: false }
    }
}

/// An Aho-Corasick automaton whose states know how much of a needle they have seen.
struct Machine {
    nfa: NFA,
    start: StateID,
    /// By state: how many bytes of a needle end here.
    depth: Vec<u32>,
    /// By state: the length of the longest whole needle that ends here, or 0.
    longest: Vec<u32>,
    wraps: bool,
}

impl Machine {
    fn new(needles: &[&[u8]], wraps: bool) -> Result<Self, aho_corasick::BuildError> {
        let nfa = NFA::builder().match_kind(MatchKind::Standard).prefilter(false).build(needles)?;
        let start = nfa.start_state(Anchored::No).unwrap_or_default();
        let mut machine = Self { nfa, start, depth: Vec::new(), longest: Vec::new(), wraps };
        for needle in needles {
            // A needle's prefix is a state of its own, so walking along it tells the depth of each.
            let mut state = start;
            for (byte, depth) in needle.iter().zip(1..) {
                state = machine.nfa.next_state(Anchored::No, state, *byte);
                machine.learn(state, depth);
            }
        }
        Ok(machine)
    }

    fn learn(&mut self, state: StateID, depth: u32) {
        let index = state.as_usize();
        if self.depth.len() <= index {
            self.depth.resize(index + 1, 0);
            self.longest.resize(index + 1, 0);
        }
        self.depth[index] = depth;
        let ends = if self.nfa.is_match(state) { self.nfa.match_len(state) } else { 0 };
        let lengths = (0..ends).map(|i| self.nfa.pattern_len(self.nfa.match_pattern(state, i)));
        self.longest[index] = lengths.max().and_then(|length| u32::try_from(length).ok()).unwrap_or(0);
    }
}

/// Where one machine stands in one stream.
struct Cursor {
    state: StateID,
    /// Line breaks (as positions in the stream) that were skipped within what the state has seen.
    breaks: VecDeque<u64>,
}

impl Cursor {
    /// Takes the byte at `at`. Returns from where on bytes may still be needed, and from where on they are secret.
    fn step(&mut self, machine: &Machine, byte: u8, at: u64) -> (u64, Option<u64>) {
        let depth_now = machine.depth.get(self.state.as_usize()).copied().unwrap_or(0);
        if machine.wraps && depth_now >= WRAPS_FROM && matches!(byte, b'\n' | b'\r') {
            self.breaks.push_back(at);
            return (self.reach(depth_now, at), None);
        }
        self.state = machine.nfa.next_state(Anchored::No, self.state, byte);
        let index = self.state.as_usize();
        let depth = machine.depth.get(index).copied().unwrap_or(0);
        if depth == 0 {
            self.breaks.clear();
            return (at + 1, None);
        }
        let longest = machine.longest.get(index).copied().unwrap_or(0);
        let secret = (longest > 0).then(|| self.reach(longest, at));
        let needed = self.reach(depth, at);
        while self.breaks.front().is_some_and(|at| *at < needed) {
            self.breaks.pop_front();
        }
        (needed, secret)
    }

    /// Where the last `length` bytes that are no skipped line breaks begin, up to and with the byte at `at`.
    fn reach(&self, length: u32, at: u64) -> u64 {
        let mut from = at + 1 - u64::from(length);
        for line_break in self.breaks.iter().rev() {
            if *line_break < from {
                break;
            }
            from -= 1;
        }
        from
    }
}

/// One stream on its way through.
pub(crate) struct Filter<'a> {
    machines: &'a [Machine],
    cursors: Vec<Cursor>,
    /// Bytes that are not out yet, and whether each is secret.
    held: VecDeque<(u8, bool)>,
    /// How many bytes came in.
    end: u64,
    /// Whether the last byte that went out was a secret one, already replaced.
    hiding: bool,
}

impl Filter<'_> {
    /// Takes the next bytes; appends what is certain to `out`.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for byte in bytes {
            self.held.push_back((*byte, false));
            let mut needed = self.end + 1;
            for (machine, cursor) in self.machines.iter().zip(&mut self.cursors) {
                let (from, secret) = cursor.step(machine, *byte, self.end);
                needed = needed.min(from);
                if let Some(secret) = secret {
                    let known = usize::try_from(self.end + 1 - secret).unwrap_or(usize::MAX).min(self.held.len());
                    let first = self.held.len() - known;
                    self.held.range_mut(first..).for_each(|(_, secret)| *secret = true);
                }
            }
            self.end += 1;
            self.release(usize::try_from(self.end - needed).unwrap_or(usize::MAX), out);
        }
    }

    /// Ends the stream: what was held back can no longer become a secret.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.release(0, out);
    }

    fn release(&mut self, keep: usize, out: &mut Vec<u8>) {
        while self.held.len() > keep {
            let Some((byte, secret)) = self.held.pop_front() else { return };
            match (secret, self.hiding) {
                (false, _) => out.push(byte),
                (true, false) => out.extend_from_slice(REPLACEMENT),
                (true, true) => {}
            }
            self.hiding = secret;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redactor(exact: &[&[u8]], wrapped: &[&[u8]]) -> Redactor {
        Redactor(vec![
            Machine::new(exact, false).expect("few needles"),
            Machine::new(wrapped, true).expect("few needles"),
        ])
    }

    fn filtered(redactor: &Redactor, chunks: &[&[u8]]) -> String {
        let (mut filter, mut out) = (redactor.filter(), Vec::new());
        chunks.iter().for_each(|chunk| filter.push(chunk, &mut out));
        filter.finish(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn streams() {
        for (exact, wrapped, chunks, expected) in [
            (&["secret"][..], &[][..], &["a secret b"][..], "a *** b"),
            (&["secret"], &[], &["a sec", "r", "et b"], "a *** b"),
            (&["secret"], &[], &["a sec", "ond"], "a second"),
            (&["secret"], &[], &["a secre"], "a secre"),
            // A secret that begins another: nothing of the longer one is left.
            (&["secret", "secret-and-more"], &[], &["secret-and-", "more."], "***."),
            (&["secret", "secret-and-more"], &[], &["secret-and-less"], "***-and-less"),
            // Overlap: both are hidden whole.
            (&["abcdef", "defghi"], &[], &["abcdefghi!"], "***!"),
            (&["aabaab"], &[], &["aaabaabaab"], "a***"),
            (&["secret"], &[], &["secretsecret"], "***"),
            // Wrapped encodings.
            (&[], &["c2VjcmV0LXZhbHVl"], &["x\nc2VjcmV0\nLXZhbHVl\ny"], "x\n***\ny"),
            (&[], &["c2VjcmV0LXZhbHVl"], &["c2VjcmV0\r", "\nLXZhbH", "Vl\r\n"], "***\r\n"),
            (&[], &["c2VjcmV0LXZhbHVl"], &["c2VjcmV0\n\nother"], "c2VjcmV0\n\nother"),
            (&["line-1\nline-2"], &[], &["line-1\nline-2"], "***"),
            (&["line-1\nline-2"], &[], &["line-1\n\nline-2"], "line-1\n\nline-2"),
        ] {
            let bytes = |texts: &[&'static str]| texts.iter().map(|t| t.as_bytes()).collect::<Vec<_>>();
            let redactor = redactor(&bytes(exact), &bytes(wrapped));
            assert_eq!(filtered(&redactor, &bytes(chunks)), expected, "{chunks:?}");
        }
    }

    #[test]
    fn nothing_is_held_back_without_need() {
        let redactor = redactor(&[b"secret"], &[b"c2VjcmV0"]);
        for (text, out) in
            [("hello\n", "hello\n"), ("Name: ", "Name: "), ("a secr", "a "), ("sex", "sex"), ("c2Vj\n", "")]
        {
            let (mut filter, mut got) = (redactor.filter(), Vec::new());
            filter.push(text.as_bytes(), &mut got);
            assert_eq!(String::from_utf8_lossy(&got), out, "{text:?}");
        }
    }

    /// The definition, slowly: hide each byte of each occurrence, one `***` for each run of hidden bytes.
    fn oracle(needles: &[Vec<u8>], text: &[u8]) -> String {
        let mut secret = vec![false; text.len()];
        for needle in needles {
            for from in 0..text.len() {
                if text[from..].starts_with(needle) {
                    secret[from..from + needle.len()].fill(true);
                }
            }
        }
        let mut out = Vec::new();
        for (i, byte) in text.iter().enumerate() {
            match (secret[i], i > 0 && secret[i - 1]) {
                (false, _) => out.push(*byte),
                (true, false) => out.extend_from_slice(REPLACEMENT),
                (true, true) => {}
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    fn letters(least: usize, most: usize) -> impl Strategy<Value = Vec<u8>> {
        // Three letters and line breaks: needles overlap, nest and repeat all the time.
        prop::collection::vec(prop::sample::select(b"aaabbc\n".to_vec()), least..most)
    }

    fn cut<'a>(text: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut chunks = Vec::new();
        let mut rest = text;
        for at in cuts {
            let (chunk, more) = rest.split_at((*at).min(rest.len()));
            chunks.push(chunk);
            rest = more;
        }
        chunks.push(rest);
        chunks
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn equals_the_oracle_however_it_is_cut(
            needles in prop::collection::vec(letters(1, 9), 1..6),
            text in letters(0, 80),
            cuts in prop::collection::vec(0..9_usize, 0..30),
        ) {
            let slices: Vec<&[u8]> = needles.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(filtered(&redactor(&slices, &[]), &cut(&text, &cuts)), oracle(&needles, &text));
        }

        #[test]
        fn wrapped_secrets_never_show(
            secret in prop::collection::vec(prop::sample::select(b"abcdefgh".to_vec()), 8..60),
            width in 4..70_usize,
            around in letters(0, 20),
            cuts in prop::collection::vec(0..9_usize, 0..30),
        ) {
            let lines: Vec<&[u8]> = secret.chunks(width).collect();
            let text = [&around[..], b"|", &lines.join(&b"\r\n"[..]), b"|", &around].concat();
            let got = filtered(&redactor(&[], &[&secret]), &cut(&text, &cuts));
            let around = String::from_utf8_lossy(&around);
            prop_assert_eq!(got, format!("{around}|***|{around}"));
        }
    }
}
