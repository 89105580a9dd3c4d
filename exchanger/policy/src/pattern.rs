//! What a claim has to be: exact values, globs, regular expressions, membership, absence.
//!
//! Every pattern matches a whole value. A regular expression is compiled alone first and wrapped
//! afterwards, so that no alternation in it can escape the anchors.

use crate::{
    claims::{Held, Value, canonical_int},
    issuer::{Claim, Kind, unnamed},
};
use regex::{Regex, RegexBuilder};
use std::fmt;

/// The largest regular expression, compiled, in bytes.
const REGEX_SIZE_LIMIT: usize = 64 * 1024;
/// The longest pattern as written, in bytes.
const MAX_PATTERN_BYTES: usize = 1024;

/// Why something is no pattern for a claim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A scalar for a claim that is a list.
    #[error("`{claim}` is {kind}, which is never equal to a scalar")]
    NotScalar {
        /// The claim.
        claim: String,
        /// What it is, in words.
        kind: &'static str,
        /// Whether it is a list, for which there is `contains`.
        list: bool,
    },
    /// A value of the wrong type.
    #[error("`{claim}` is {kind}, and `{value}` is not")]
    WrongType {
        /// The claim.
        claim: String,
        /// What it is, in words.
        kind: &'static str,
        /// The value as written.
        value: String,
    },
    /// A glob or regex for a claim that is not text.
    #[error("`{operator}` needs a text claim, and `{claim}` is {kind}")]
    NotText {
        /// `glob` or `regex`.
        operator: &'static str,
        /// The claim.
        claim: String,
        /// What it is, in words.
        kind: &'static str,
    },
    /// `contains` for a claim that is no list.
    #[error("`contains` needs a list, and `{claim}` is {kind}")]
    NotList {
        /// The claim.
        claim: String,
        /// What it is, in words.
        kind: &'static str,
    },
    /// A character that other globs give a meaning.
    #[error("a glob knows only `*`, and this one has `{0}`")]
    GlobCharacter(String),
    /// A regex that does not compile, or too large a one.
    #[error("not a regular expression: {0}")]
    Regex(String),
    /// Longer than a pattern may be.
    #[error("the pattern is longer than {MAX_PATTERN_BYTES} bytes")]
    TooLong,
}

impl PatternError {
    /// How to repair it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::NotScalar { list: true, .. } => "write { contains: … }".to_owned(),
            Self::NotScalar { .. } => "match a claim that the profile cuts out of it".to_owned(),
            Self::WrongType { kind, .. } => format!("write {kind}"),
            Self::NotText { .. } => "list the values".to_owned(),
            Self::NotList { .. } => "write the value itself, or a list of values for any of them".to_owned(),
            Self::GlobCharacter(_) => {
                "`*` stands for any text without `/`; for more, list the values or use { regex: … }".to_owned()
            }
            Self::Regex(_) => "see https://docs.rs/regex/#syntax; it is matched against the whole value".to_owned(),
            Self::TooLong => "list the values, or split the rule".to_owned(),
        }
    }
}

/// A glob: `*` stands for any text that has none of its separators.
#[derive(Clone, Debug)]
pub(crate) struct Glob {
    text: Box<str>,
    separators: Box<str>,
}

impl Glob {
    pub(crate) fn parse(text: &str, claim: &Claim) -> Result<Self, PatternError> {
        Self::new(text, &claim.separators)
    }

    /// A glob whose `*` stops at `/` and at each of `separators`.
    pub(crate) fn new(text: &str, separators: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::TooLong);
        }
        if text.contains("**") {
            return Err(PatternError::GlobCharacter("**".to_owned()));
        }
        if let Some(c) = text.chars().find(|c| "?[]{}\\".contains(*c)) {
            return Err(PatternError::GlobCharacter(c.to_string()));
        }
        Ok(Self { text: text.into(), separators: format!("/{separators}").into() })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn separators(&self) -> &str {
        &self.separators
    }

    /// Two cursors and the last star: a star that may not cross a separator never has to be taken
    /// back once a later star was reached, because what lies between the two fixes or outlives it.
    pub(crate) fn is_match(&self, value: &str) -> bool {
        let (pattern, value) = (self.text.as_bytes(), value.as_bytes());
        let (mut p, mut v, mut star) = (0, 0, None);
        while v < value.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, v));
                    p += 1;
                }
                Some(c) if *c == value[v] => {
                    p += 1;
                    v += 1;
                }
                _ => match star {
                    // Separators are ASCII, so a byte of a longer character is never one.
                    Some((star_p, star_v)) if !self.separators.as_bytes().contains(&value[star_v]) => {
                        star = Some((star_p, star_v + 1));
                        p = star_p + 1;
                        v = star_v + 1;
                    }
                    _ => return false,
                },
            }
        }
        pattern[p..].iter().all(|c| *c == b'*')
    }
}

/// A regular expression over whole values.
#[derive(Clone, Debug)]
pub(crate) struct WholeRegex {
    text: Box<str>,
    regex: Regex,
}

impl WholeRegex {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::TooLong);
        }
        let compile = |text: &str| {
            RegexBuilder::new(text).size_limit(REGEX_SIZE_LIMIT).nest_limit(32).build().map_err(|error| {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                PatternError::Regex(last.trim().trim_start_matches("error: ").to_owned())
            })
        };
        // Alone first: `a)|(b` compiles only between somebody else's parentheses.
        compile(text)?;
        Ok(Self { text: text.into(), regex: compile(&format!(r"\A(?:{text})\z"))? })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The text without the names of its groups.
    pub(crate) fn unnamed(&self) -> String {
        unnamed(&self.regex)
    }

    pub(crate) fn is_match(&self, value: &str) -> bool {
        self.regex.is_match(value)
    }
}

/// One pattern of a text claim.
#[derive(Clone, Debug)]
pub(crate) enum Pattern {
    Glob(Glob),
    Regex(WholeRegex),
}

impl Pattern {
    /// The pattern as written.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Glob(glob) => glob.text(),
            Self::Regex(regex) => regex.text(),
        }
    }

    pub(crate) fn is_match(&self, value: &str) -> bool {
        match self {
            Self::Glob(glob) => glob.is_match(value),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Glob(glob) => write!(f, "glob {}", plain(glob.text())),
            Self::Regex(regex) => write!(f, "regex {}", plain(regex.text())),
        }
    }
}

/// What a claim has to be, compiled for the claim's type.
#[derive(Clone, Debug)]
pub(crate) enum Matcher {
    /// Any of these values or patterns. INVARIANT: `exact` is sorted.
    Text { exact: Vec<Box<str>>, patterns: Vec<Pattern> },
    /// Any of these numbers. INVARIANT: sorted.
    Int(Vec<i64>),
    /// This truth value, or either of both.
    Bool(Vec<bool>),
    /// A list that has this item.
    Contains(Box<str>),
    /// Not there.
    Absent,
}

impl Matcher {
    /// The matcher for any of `values` of `claim`.
    pub(crate) fn any_of(claim: &Claim, values: &[String], patterns: Vec<Pattern>) -> Result<Self, PatternError> {
        let kind = claim.kind.words();
        let name = || claim.name.to_string();
        let operator = match patterns.first() {
            Some(Pattern::Glob(_)) => Some("glob"),
            Some(Pattern::Regex(_)) => Some("regex"),
            None => None,
        };
        if let (Some(operator), true) = (operator, claim.kind != Kind::Text) {
            return Err(PatternError::NotText { operator, claim: name(), kind });
        }
        let wrong = |value: &String| PatternError::WrongType { claim: name(), kind, value: value.clone() };
        match claim.kind {
            Kind::Text => {
                let mut exact: Vec<Box<str>> = values.iter().map(|value| value.as_str().into()).collect();
                exact.sort();
                exact.dedup();
                Ok(Self::Text { exact, patterns })
            }
            Kind::Int => {
                let numbers = values.iter().map(|value| canonical_int(value).ok_or_else(|| wrong(value)));
                let mut numbers = numbers.collect::<Result<Vec<_>, _>>()?;
                numbers.sort_unstable();
                numbers.dedup();
                Ok(Self::Int(numbers))
            }
            Kind::Bool => {
                let truths = values.iter().map(|value| value.parse().map_err(|_| wrong(value)));
                Ok(Self::Bool(truths.collect::<Result<_, _>>()?))
            }
            Kind::List | Kind::Json => {
                Err(PatternError::NotScalar { claim: name(), kind, list: claim.kind == Kind::List })
            }
        }
    }

    pub(crate) fn contains(claim: &Claim, item: &str) -> Result<Self, PatternError> {
        match claim.kind {
            Kind::List => Ok(Self::Contains(item.into())),
            _ => Err(PatternError::NotList { claim: claim.name.to_string(), kind: claim.kind.words() }),
        }
    }

    pub(crate) fn is_match(&self, held: &Held) -> bool {
        match (self, held) {
            (Self::Absent, Held::Absent) => true,
            (Self::Text { exact, patterns }, Held::Is(Value::Text(text))) => {
                exact.binary_search_by(|known| (**known).cmp(text)).is_ok()
                    || patterns.iter().any(|pattern| pattern.is_match(text))
            }
            (Self::Int(numbers), Held::Is(Value::Int(number))) => numbers.binary_search(number).is_ok(),
            (Self::Bool(truths), Held::Is(Value::Bool(truth))) => truths.contains(truth),
            (Self::Contains(item), Held::Is(Value::List(items))) => items.contains(item),
            _ => false,
        }
    }

    /// The texts that match, where there is a finite list of them.
    pub(crate) fn exact(&self) -> Option<Vec<String>> {
        match self {
            Self::Text { exact, patterns } if patterns.is_empty() => {
                Some(exact.iter().map(|t| t.to_string()).collect())
            }
            Self::Int(numbers) => Some(numbers.iter().map(ToString::to_string).collect()),
            Self::Bool(truths) => Some(truths.iter().map(ToString::to_string).collect()),
            Self::Text { .. } | Self::Contains(_) | Self::Absent => None,
        }
    }
}

impl fmt::Display for Matcher {
    /// In words: `one of a, b`, `glob x/*`, `absent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut alternatives: Vec<String> = match self {
            Self::Absent => return f.write_str("absent"),
            Self::Contains(item) => return write!(f, "a list that contains {}", plain(item)),
            Self::Text { exact, patterns } => {
                exact.iter().map(|text| quoted(text)).chain(patterns.iter().map(ToString::to_string)).collect()
            }
            Self::Int(numbers) => numbers.iter().map(ToString::to_string).collect(),
            Self::Bool(truths) => truths.iter().map(ToString::to_string).collect(),
        };
        let last = alternatives.pop().unwrap_or_default();
        match alternatives.is_empty() {
            true => f.write_str(&last),
            false => write!(f, "{} or {last}", alternatives.join(", ")),
        }
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() { "the empty text".to_owned() } else { plain(text) }
}

/// A text for a terminal: what would steer it is written out.
pub(crate) fn plain(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    if text.contains(char::is_control) { text.chars().map(escape).collect() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::Profile;

    #[test]
    fn globs() {
        let profile = Profile::named("github").expect("a profile");
        for (claim, glob, value, matches) in [
            ("ref", "refs/heads/*", "refs/heads/main", true),
            ("ref", "refs/heads/*", "refs/heads/a/b", false),
            ("ref", "refs/heads/*", "xrefs/heads/main", false),
            ("ref", "refs/heads/*", "refs/heads/", true),
            ("ref", "refs/heads/release-*", "refs/heads/release-1.2", true),
            ("ref", "refs/heads/release-*", "refs/heads/release-", true),
            ("ref", "refs/heads/release-*", "refs/heads/prerelease-1", false),
            ("ref", "*/*/main", "refs/heads/main", true),
            ("ref", "*a*b", "xaybzb", true),
            ("ref", "*a*b", "xaybz", false),
            ("ref", "*a*b", "x/ab", false),
            ("ref", "*a/*b", "aa/bb", true),
            ("ref", "*", "é", true),
            ("ref", "*", "", true),
            ("ref", "", "", true),
            ("ref", "", "x", false),
            ("sub", "repo:acme/*:ref:refs/heads/main", "repo:acme/api:ref:refs/heads/main", true),
            ("sub", "repo:acme/*:ref:refs/heads/main", "repo:acme/api:environment:x:ref:refs/heads/main", false),
            (
                "workflow_ref",
                "a/b/.github/workflows/*.yml@refs/heads/main",
                "a/b/.github/workflows/x.yml@refs/heads/main",
                true,
            ),
            (
                "workflow_ref",
                "a/b/.github/workflows/*@refs/heads/main",
                "a/b/.github/workflows/x@y@refs/heads/main",
                false,
            ),
        ] {
            let glob = Glob::parse(glob, profile.claim(claim).expect("a claim")).expect("a glob");
            assert_eq!(glob.is_match(value), matches, "{} on {value}", glob.text());
        }
        for bad in ["**", "a?", "[ab]", "{a,b}", r"a\*"] {
            assert!(Glob::parse(bad, profile.claim("ref").expect("a claim")).is_err(), "{bad}");
        }
    }

    #[test]
    fn regexes_match_whole_values() {
        for (regex, value, matches) in [
            ("main|dev", "main", true),
            ("main|dev", "main-evil", false),
            ("main|dev", "evil-dev", false),
            ("refs/heads/.*", "refs/heads/a\nb", false),
            ("(?s)refs/heads/.*", "refs/heads/a\nb", true),
            ("(?m)^main$", "main\nevil", false),
            ("main$", "main\n", false),
            ("(?x) main # branch \n", "main", true),
        ] {
            let regex = WholeRegex::parse(regex).expect("a regex");
            assert_eq!(regex.is_match(value), matches, "{} on {value:?}", regex.text());
        }
        for bad in ["a)|(b", "(", "(?x) a # b", &"a".repeat(2000), r"\w{500}", "(?P<x"] {
            assert!(WholeRegex::parse(bad).is_err(), "{bad}");
        }
    }
}
