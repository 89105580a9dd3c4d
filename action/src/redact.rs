//! A filter that replaces every spelling of every secret in a stream, however the stream is cut.
//!
//! Each byte that belongs to any occurrence of any needle is hidden, so overlapping secrets leave
//! no tail; so is a long beginning of a needle that is one word, where the rest was cut off. Only bytes
//! that could still become part of an occurrence are held back; when there are none, all that came in
//! has gone out. Never sees where the bytes come from or go to.

use crate::mask::Needles;
use aho_corasick::{
    Anchored, MatchKind,
    automaton::{Automaton, StateID},
    nfa::noncontiguous::NFA,
};
use std::{collections::VecDeque, ops::Range};

/// What stands in the place of a secret.
pub(crate) const REPLACEMENT: &[u8] = b"***";
/// From so many characters on, a line break within an encoded secret is taken for wrapping, with what indents the
/// next line.
const WRAPS_FROM: usize = 4;
/// Shorter beginnings of a needle are too common to be hidden without the rest.
const SHORTEST_BEGINNING: usize = 12;

/// The needles, ready to be searched for.
pub(crate) struct Redactor(Vec<Machine>);

impl Redactor {
    /// Prepares the search.
    ///
    /// # Errors
    /// When there are more needles than fit into memory's addresses.
    pub(crate) fn new(needles: &Needles) -> Result<Self, aho_corasick::BuildError> {
        let exact: Vec<&[u8]> = needles.exact().collect();
        // Also what follows a line break that came before it is taken for wrapping.
        let tails =
            |needle| (0..WRAPS_FROM).filter_map(move |skip| <[u8]>::get(needle, skip..).map(|tail| (skip, tail)));
        let is_long = |(skip, tail): &(usize, &[u8])| *skip == 0 || tail.len() >= SHORTEST_BEGINNING;
        let wrapped: Vec<&[u8]> = needles.wrapped().flat_map(tails).filter(is_long).map(|(_, tail)| tail).collect();
        Ok(Self(vec![Machine::new(&exact, false)?, Machine::new(&wrapped, true)?]))
    }

    /// Begins to filter one stream.
    pub(crate) fn filter(&self) -> Filter<'_> {
        let cursors = self.0.iter().map(Cursor::new).collect();
        let (held, secret) = (VecDeque::new(), VecDeque::new());
        Filter { machines: &self.0, cursors, held, secret, end: 0, hiding: false }
    }
}

/// An Aho-Corasick automaton whose states know how much of a needle they have seen.
struct Machine {
    nfa: NFA,
    start: StateID,
    /// By state: how many bytes of a needle end here.
    depth: Vec<u32>,
    /// By state: the length of the longest needle, or beginning that is hidden like one, that ends here, or 0.
    longest: Vec<u32>,
    wraps: bool,
}

impl Machine {
    fn new(needles: &[&[u8]], wraps: bool) -> Result<Self, aho_corasick::BuildError> {
        let nfa = NFA::builder().match_kind(MatchKind::Standard).prefilter(false).build(needles)?;
        let start = nfa.start_state(Anchored::No).unwrap_or_default();
        let mut machine = Self { nfa, start, depth: Vec::new(), longest: Vec::new(), wraps };
        // A needle's prefix is a state of its own, so walking along it tells the depth of each. The same walk, one byte
        // late, is always at the longest shorter prefix that ends there too.
        let mut walks: Vec<_> = needles.iter().map(|needle| (needle, hidden_from(needle), start, start)).collect();
        for index in 0..needles.iter().map(|needle| needle.len()).max().unwrap_or(0) {
            for (needle, hidden_from, state, shorter) in walks.iter_mut().filter(|(needle, ..)| index < needle.len()) {
                *state = machine.nfa.next_state(Anchored::No, *state, needle[index]);
                if index > 0 {
                    *shorter = machine.nfa.next_state(Anchored::No, *shorter, needle[index]);
                }
                let depth = index + 1;
                machine.learn(*state, *shorter, depth, depth >= *hidden_from);
            }
        }
        Ok(machine)
    }

    /// Learns of a state that has seen `depth` bytes of a needle; those that have seen less are known already.
    fn learn(&mut self, state: StateID, shorter: StateID, depth: usize, hidden: bool) {
        let index = state.as_usize();
        if self.depth.len() <= index {
            self.depth.resize(index + 1, 0);
            self.longest.resize(index + 1, 0);
        }
        let beginning = if hidden { depth } else { 0 };
        let shorter = self.longest.get(shorter.as_usize()).copied().unwrap_or(0);
        let ends = if self.nfa.is_match(state) { self.nfa.match_len(state) } else { 0 };
        let lengths = (0..ends).map(|i| self.nfa.pattern_len(self.nfa.match_pattern(state, i)));
        let longest = lengths.max().unwrap_or(0).max(beginning).try_into().unwrap_or(0);
        self.depth[index] = depth.try_into().unwrap_or(u32::MAX);
        self.longest[index] = longest.max(self.longest[index]).max(shorter);
    }
}

/// From how many bytes on a needle is hidden even when the rest of it does not come: more than half of one that is a
/// word, as tokens, generated passwords and encodings are (`token68`, RFC 9110 §11.2). What a URL or a document begins
/// with is rarely the secret of it.
fn hidden_from(needle: &[u8]) -> usize {
    let is_word = needle.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte));
    if is_word { SHORTEST_BEGINNING.max(needle.len() / 2 + 1) } else { needle.len() }
}

/// Where one machine stands in one stream.
struct Cursor {
    state: StateID,
    /// How many bytes the automaton has taken.
    taken: u64,
    /// How many bytes were skipped before those in `skipped`.
    skipped_before: u64,
    /// Line breaks, with what indents the next line, that were skipped within what the state has seen.
    skipped: VecDeque<Skipped>,
}

/// Bytes beside each other that the automaton was not given.
struct Skipped {
    /// How many it had taken before them.
    taken: u64,
    /// How many were skipped so far, these included.
    total: u64,
}

impl Cursor {
    fn new(machine: &Machine) -> Self {
        Self { state: machine.start, taken: 0, skipped_before: 0, skipped: VecDeque::new() }
    }

    /// Takes a byte. Returns from where on bytes may still be needed, and from where on they are secret.
    fn step(&mut self, machine: &Machine, byte: u8) -> (u64, Option<u64>) {
        let depth_now = machine.depth.get(self.state.as_usize()).copied().unwrap_or(0);
        if machine.wraps && depth_now as usize >= WRAPS_FROM && self.skips(byte) {
            return (self.reach(depth_now), None);
        }
        self.state = machine.nfa.next_state(Anchored::No, self.state, byte);
        self.taken += 1;
        let index = self.state.as_usize();
        let depth = machine.depth.get(index).copied().unwrap_or(0);
        if depth == 0 {
            self.skipped_before = self.skipped_so_far();
            self.skipped.clear();
            return (self.taken + self.skipped_before, None);
        }
        let longest = machine.longest.get(index).copied().unwrap_or(0);
        let secret = (longest > 0).then(|| self.reach(longest));
        while let Some(first) = self.skipped.pop_front_if(|first| first.taken <= self.taken - u64::from(depth)) {
            self.skipped_before = first.total;
        }
        (self.reach(depth), secret)
    }

    /// Skips a line break, and spaces and tabs after one.
    fn skips(&mut self, byte: u8) -> bool {
        let total = self.skipped_so_far() + 1;
        match (byte, self.skipped.back_mut()) {
            (b'\n' | b'\r' | b' ' | b'\t', Some(last)) if last.taken == self.taken => last.total = total,
            (b'\n' | b'\r', _) => self.skipped.push_back(Skipped { taken: self.taken, total }),
            _ => return false,
        }
        true
    }

    fn skipped_so_far(&self) -> u64 {
        self.skipped.back().map_or(self.skipped_before, |last| last.total)
    }

    /// Where in the stream the last `length` bytes that were taken begin.
    fn reach(&self, length: u32) -> u64 {
        let taken = self.taken - u64::from(length);
        let earlier = self.skipped.partition_point(|skipped| skipped.taken <= taken);
        taken + earlier.checked_sub(1).map_or(self.skipped_before, |last| self.skipped[last].total)
    }
}

/// One stream on its way through.
pub(crate) struct Filter<'a> {
    machines: &'a [Machine],
    cursors: Vec<Cursor>,
    /// Bytes that are not out yet.
    held: VecDeque<u8>,
    /// What of them is secret: apart from each other, in order.
    secret: VecDeque<Range<u64>>,
    /// How many bytes came in.
    end: u64,
    /// Whether the last byte that went out was a secret one, already replaced.
    hiding: bool,
}

impl Filter<'_> {
    /// Takes the next bytes; appends what is certain to `out`.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut needed = self.end - self.held.len() as u64;
        self.held.extend(bytes);
        for byte in bytes {
            self.end += 1;
            needed = self.end;
            for (machine, cursor) in self.machines.iter().zip(&mut self.cursors) {
                let (from, secret) = cursor.step(machine, *byte);
                needed = needed.min(from);
                if let Some(mut from) = secret {
                    while let Some(last) = self.secret.pop_back_if(|last| last.end >= from) {
                        from = from.min(last.start);
                    }
                    self.secret.push_back(from..self.end);
                }
            }
        }
        self.release(usize::try_from(self.end - needed).unwrap_or(usize::MAX), out);
    }

    /// Ends the stream: what was held back can no longer become a secret.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.release(0, out);
    }

    fn release(&mut self, keep: usize, out: &mut Vec<u8>) {
        let mut free = self.held.len().saturating_sub(keep);
        while free > 0 {
            let at = self.end - self.held.len() as u64;
            let within = |end: u64| usize::try_from(end - at).unwrap_or(usize::MAX).min(free);
            let length = match self.secret.pop_front_if(|next| next.start <= at) {
                Some(secret) => {
                    if !self.hiding {
                        out.extend_from_slice(REPLACEMENT);
                    }
                    let length = within(secret.end);
                    self.held.drain(..length);
                    if at + (length as u64) < secret.end {
                        self.secret.push_front(secret);
                    }
                    self.hiding = true;
                    length
                }
                None => {
                    let length = self.secret.front().map_or(free, |next| within(next.start));
                    out.extend(self.held.drain(..length));
                    self.hiding = false;
                    length
                }
            };
            free -= length;
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
            (&[], &["c2VjcmV0LXZhbHVl"], &["    c2VjcmV0\n    LXZh\r\n \t", "bHVl\n    x"], "    ***\n    x"),
            (&[], &["c2VjcmV0LXZhbHVl"], &["c2VjcmV0 LXZhbHVl"], "c2VjcmV0 LXZhbHVl"),
            (&[], &["c2VjcmV0LXZhbHVl"], &["c2VjcmV0\n  other"], "c2VjcmV0\n  other"),
            // Cut off: more than half of a word, and enough of it.
            (&["word-of-seventeen"], &[], &["word-of-sevent..."], "***..."),
            (&["word-of-seventeen"], &[], &["word-of-sev..."], "word-of-sev..."),
            (&["no word, 17 bytes"], &[], &["no word, 17 byte..."], "no word, 17 byte..."),
            (&["xword-of-seventeen!", "word-of-seventeen"], &[], &["xword-of-sevent..."], "x***..."),
            (&[], &["word-of-seventeen"], &["word-of\n  -sevent\n..."], "***\n..."),
            (&["line-1\nline-2"], &[], &["line-1\nline-2"], "***"),
            (&["line-1\nline-2"], &[], &["line-1\n\nline-2"], "line-1\n\nline-2"),
        ] {
            let bytes = |texts: &[&'static str]| texts.iter().map(|t| t.as_bytes()).collect::<Vec<_>>();
            let redactor = redactor(&bytes(exact), &bytes(wrapped));
            assert_eq!(filtered(&redactor, &bytes(chunks)), expected, "{chunks:?}");
        }
    }

    #[test]
    fn an_encoding_is_hidden_wherever_its_lines_end() {
        let secret = "q7Jd0sVw2Xn9-KpRb4_Ty6Uz8Lm1Ae3Cg5Hi";
        let mut needles = Needles::default();
        needles.add(secret).expect("long enough");
        let redactor = Redactor::new(&needles).expect("few needles");
        let engine = &base64::engine::general_purpose::STANDARD;
        for (before, width) in (0..80).flat_map(|before| [(before, 64), (before, 76)]) {
            let encoded = base64::Engine::encode(engine, format!("{}{secret}", "0".repeat(before)));
            let hidden = &encoded.as_bytes()[(before * 8).div_ceil(6)..];
            let lines: Vec<&[u8]> = encoded.as_bytes().chunks(width).collect();
            let shown = filtered(&redactor, &[&lines.join(&b'\n')]).replace('\n', "");
            // The last characters hang together with the padding, and three before a line's end may be anything's.
            let told = hidden.windows(6).find(|part| shown.as_bytes().windows(6).any(|window| window == *part));
            assert!(told.is_none(), "{before} zeros, lines of {width}: {shown}");
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

    /// The definition, slowly: hide each byte of each occurrence and long beginning, one `***` for each run of hidden
    /// bytes.
    fn oracle(needles: &[Vec<u8>], text: &[u8]) -> String {
        let mut secret = vec![false; text.len()];
        for needle in needles {
            for from in 0..text.len() {
                let same = text[from..].iter().zip(needle).take_while(|(a, b)| a == b).count();
                if same >= hidden_from(needle).min(needle.len()) {
                    secret[from..from + same].fill(true);
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
        fn beginnings_are_hidden_wherever_they_end(
            needles in prop::collection::vec(prop::collection::vec(prop::sample::select(b"aaab".to_vec()), 12..24), 1..4),
            pieces in prop::collection::vec((0..4_usize, 0..25_usize, letters(0, 3)), 0..6),
            cuts in prop::collection::vec(0..9_usize, 0..30),
        ) {
            let slices: Vec<&[u8]> = needles.iter().map(Vec::as_slice).collect();
            let beginning = |which: usize, length: usize| {
                let needle = slices[which % slices.len()];
                &needle[..length.min(needle.len())]
            };
            let text: Vec<u8> = pieces.iter().flat_map(|(which, length, more)| [beginning(*which, *length), more].concat()).collect();
            prop_assert_eq!(filtered(&redactor(&slices, &[]), &cut(&text, &cuts)), oracle(&needles, &text));
        }

        #[test]
        fn wrapped_secrets_never_show(
            secret in prop::collection::vec(prop::sample::select(b"abcdefgh".to_vec()), 8..60),
            width in 4..70_usize,
            between in prop::sample::select(vec!["\n", "\r\n", "\n    ", "\r\n\t "]),
            around in letters(0, 20),
            cuts in prop::collection::vec(0..9_usize, 0..30),
        ) {
            let lines: Vec<&[u8]> = secret.chunks(width).collect();
            let text = [&around[..], b"|", &lines.join(between.as_bytes()), b"|", &around].concat();
            let got = filtered(&redactor(&[], &[&secret]), &cut(&text, &cuts));
            let around = String::from_utf8_lossy(&around);
            prop_assert_eq!(got, format!("{around}|***|{around}"));
        }
    }
}
