//! Texts that patterns match: found by walking their automata together, never guessed.
//!
//! The automata are bounded, and so is the work of all searches together. Where there is too much, the answer
//! is [`Found::Unknown`]: whoever asks must not take it for a no.

use regex_automata::{
    Anchored, MatchKind,
    dfa::{Automaton, StartKind, dense},
    util::{primitives::StateID, start},
};
use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

/// The largest automaton of one pattern, and what it may take to build it, in bytes.
const MAX_DFA_BYTES: usize = 1 << 20;
const MAX_BUILD_BYTES: usize = 4 << 20;
/// The most states of several automata together that one search looks at.
const MAX_STATES: usize = 20_000;

/// The most steps of all searches together: about a second's.
const MAX_WORK: usize = 4_000_000;

/// Every text.
pub(crate) const ANYTHING: &str = "(?s:.)*";

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The shortest text, of plain characters where there is a choice.
    Text(String),
    /// There is none.
    Nothing,
    /// Too large a question.
    Unknown,
}

type Dfa = dense::DFA<Vec<u32>>;

/// Automata, each built once, and what was asked of them.
#[derive(Default)]
pub(crate) struct Languages {
    automata: HashMap<String, Option<Rc<Dfa>>>,
    answers: HashMap<(Vec<String>, Vec<String>), Found>,
    work: usize,
}

impl Languages {
    /// A text that all regular expressions in `inside` match as a whole, and none in `outside` does.
    pub(crate) fn find(&mut self, inside: &[String], outside: &[String]) -> Found {
        if inside.iter().any(|pattern| outside.contains(pattern)) {
            return Found::Nothing;
        }
        let question = (inside.to_vec(), outside.to_vec());
        if let Some(found) = self.answers.get(&question) {
            return found.clone();
        }
        if self.work >= MAX_WORK {
            return Found::Unknown;
        }
        let found = self.search(inside, outside);
        self.answers.insert(question, found.clone());
        found
    }

    /// Lets the work begin anew: for the next thing that is asked about.
    pub(crate) fn renew(&mut self) {
        self.work = 0;
    }

    fn search(&mut self, inside: &[String], outside: &[String]) -> Found {
        // Of automata that only look at what must not match, any bytes would do.
        let anything = ANYTHING.to_owned();
        let patterns = inside.iter().chain([&anything]).chain(outside);
        let Some(dfas) = patterns.map(|pattern| self.automaton(pattern)).collect::<Option<Vec<_>>>() else {
            return Found::Unknown;
        };
        let mut walk = Walk { dfas: &dfas, inside: inside.len() + 1, work: 0 };
        let found = walk.find(MAX_WORK - self.work);
        self.work += walk.work;
        found.unwrap_or(Found::Unknown)
    }

    fn automaton(&mut self, pattern: &str) -> Option<Rc<Dfa>> {
        let build = || {
            let config = dense::Config::new()
                .start_kind(StartKind::Anchored)
                .match_kind(MatchKind::All)
                .dfa_size_limit(Some(MAX_DFA_BYTES))
                .determinize_size_limit(Some(MAX_BUILD_BYTES));
            dense::Builder::new().configure(config).build(&format!(r"\A(?:{pattern})\z")).ok().map(Rc::new)
        };
        let known = self.automata.get(pattern).cloned();
        known.unwrap_or_else(|| {
            let built = build();
            // Building one that is too large takes as long as many steps.
            self.work += built.as_ref().map_or(MAX_DFA_BYTES, |dfa| dfa.memory_usage()) / 16;
            self.automata.insert(pattern.to_owned(), built.clone());
            built
        })
    }
}

/// Several automata that read the same text.
struct Walk<'a> {
    dfas: &'a [Rc<Dfa>],
    /// So many of them have to match, the others must not.
    inside: usize,
    work: usize,
}

impl Walk<'_> {
    /// Breadth first, so that the shortest text is found first. `None`: an automaton gave up, or it was too
    /// much work.
    fn find(&mut self, most: usize) -> Option<Found> {
        let config = start::Config::new().anchored(Anchored::Yes);
        let begin: Vec<StateID> = self.dfas.iter().map(|dfa| dfa.start_state(&config).ok()).collect::<Option<_>>()?;
        let symbols = self.symbols();
        let mut seen = HashSet::from([begin.clone()]);
        let mut steps: Vec<(Vec<StateID>, usize, u8)> = vec![(begin, 0, 0)];
        let mut at = 0;
        while let Some((states, ..)) = steps.get(at) {
            if self.accepts(states) {
                return Some(text(&steps, at));
            }
            let states = states.clone();
            self.work += symbols.len() * self.dfas.len();
            for &byte in &symbols {
                let next: Vec<StateID> =
                    self.dfas.iter().zip(&states).map(|(dfa, state)| dfa.next_state(*state, byte)).collect();
                let mut moved = self.dfas.iter().zip(&next);
                if moved.clone().any(|(dfa, state)| dfa.is_quit_state(*state))
                    || steps.len() >= MAX_STATES
                    || self.work > most
                {
                    return None;
                }
                let hopeless = moved.by_ref().take(self.inside).any(|(dfa, state)| dfa.is_dead_state(*state));
                if !hopeless && seen.insert(next.clone()) {
                    steps.push((next, at, byte));
                }
            }
            at += 1;
        }
        Some(Found::Nothing)
    }

    fn accepts(&self, states: &[StateID]) -> bool {
        self.dfas
            .iter()
            .zip(states)
            .enumerate()
            .all(|(index, (dfa, state))| dfa.is_match_state(dfa.next_eoi_state(*state)) == (index < self.inside))
    }

    /// One byte of each kind that no automaton distinguishes, the plainest one.
    fn symbols(&self) -> Vec<u8> {
        let plain = (b'a'..=b'z').chain(b'0'..=b'9').chain(*b"-_./:@").chain(b'A'..=b'Z').chain(b' '..=b'~');
        let mut kinds = HashSet::new();
        plain
            .chain(0..=u8::MAX)
            .filter(|byte| kinds.insert(self.dfas.iter().map(|dfa| dfa.byte_classes().get(*byte)).collect::<Vec<_>>()))
            .collect()
    }
}

fn text(steps: &[(Vec<StateID>, usize, u8)], mut at: usize) -> Found {
    let mut bytes = Vec::new();
    while let Some((_, before, byte)) = steps.get(at).filter(|_| at > 0) {
        bytes.push(*byte);
        at = *before;
    }
    bytes.reverse();
    String::from_utf8(bytes).map_or(Found::Unknown, Found::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersections_and_differences() {
        let text = |text: &str| Found::Text(text.to_owned());
        for (inside, outside, expected) in [
            (vec!["refs/heads/[^/]*"], vec![], text("refs/heads/")),
            (vec!["refs/heads/[^/]+", ".*/release-.*"], vec![], text("refs/heads/release-")),
            (vec!["refs/heads/[^/]+"], vec!["(?s)refs/heads/.*"], Found::Nothing),
            (vec!["refs/heads/.*"], vec!["refs/heads/[^/]*"], text("refs/heads//")),
            (vec![], vec![".*"], text("\n")),
            (vec![], vec![ANYTHING], Found::Nothing),
            (vec!["main|dev"], vec!["main"], text("dev")),
            (vec!["main"], vec!["main|dev"], Found::Nothing),
            (vec![r"\bx"], vec![r"\bx"], Found::Nothing),
            (vec!["é+"], vec!["é"], text("éé")),
            (vec![r"\d+"], vec!["[0-9]+"], text("٠")),
            (vec![r"\bmain\b"], vec![], Found::Unknown),
            (vec!["(?:[ab]*a[ab]{18})"], vec!["(?:[ab]*b[ab]{17})"], Found::Unknown),
        ] {
            let own = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
            let found = Languages::default().find(&own(&inside), &own(&outside));
            assert_eq!(found, expected, "{inside:?} without {outside:?}");
        }
    }
}
