//! What matchers and conditions amount to, as far as their shape shows.

use super::trial::twin;
use crate::{
    claims::{Held, Value},
    grant::{Check, Rule},
    issuer::Claim,
    pattern::{Matcher, Pattern},
};
use regex::Regex;
use std::{collections::BTreeSet, sync::LazyLock};

static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r"(?i)\A(?:todo|tbd|fixme|xxx+|changeme|(?:change|replace)[-_ ]me|(?:your|insert)[-_ ].*|my-org|my-repo|<.*>|\$[a-z_]+|\.\.\.|…)\z|\$\{|\$\(|\{\{|<[a-z_-]+>",
    )
});

/// A fixed expression; one that were wrong would match nothing, and a test would miss it.
fn compiled(text: &str) -> Regex {
    #[expect(clippy::expect_used, reason = "the expressions are constants that every test run compiles")]
    Regex::new(text).expect("a constant expression")
}

pub(super) fn is_placeholder(text: &str) -> bool {
    PLACEHOLDER.is_match(text)
}

pub(super) fn checks_of<'r>(rule: &'r Rule, claim: &str) -> impl Iterator<Item = &'r Check> {
    let claim = claim.to_owned();
    rule.checks.iter().filter(move |check| *check.claim == *claim)
}

/// The lines on a claim, and what the condition amounts to on it.
pub(super) fn effective<'r>(rule: &'r Rule, claim: &str) -> impl Iterator<Item = &'r Check> {
    let claim = claim.to_owned();
    let conjuncts = rule.condition.iter().filter_map(|condition| condition.conjuncts()).flatten();
    rule.checks.iter().chain(conjuncts).filter(move |check| *check.claim == *claim)
}

/// Whether a pattern matches texts that have nothing in common, or all that look like those `seen` in tokens.
pub(super) fn matches_anything(pattern: &Pattern, claim: &Claim, seen: &BTreeSet<String>) -> bool {
    let probes = ["0", "7", "42424242", "a", "main", "qzxkw", "x-1"];
    let possible = probes.iter().filter(|probe| probe.chars().all(|c| claim.may_hold(c)));
    let all = possible.clone().count() > 1 && possible.clone().all(|probe| pattern.is_match(probe));
    let is_alike = |value: &String| {
        // What stands before the first hyphen may be of all ids: `ws-…`.
        let kind = value.find('-').map_or(0, |at| at + 1);
        let twin = |by| format!("{}{}", &value[..kind], twin(&value[kind..], by));
        pattern.is_match(&twin(1)) && pattern.is_match(&twin(3))
    };
    all || seen.iter().any(is_alike)
}

fn accepts(matcher: &Matcher, text: &str) -> bool {
    matcher.is_match(&Held::Is(Value::Text(text.into())))
        || text.parse().is_ok_and(|truth| matcher.is_match(&Held::Is(Value::Bool(truth))))
}

pub(super) fn texts(matcher: &Matcher) -> Vec<String> {
    match matcher {
        Matcher::Text { exact, .. } => exact.iter().map(ToString::to_string).collect(),
        Matcher::Contains(item) => vec![item.to_string()],
        Matcher::Int(_) | Matcher::Bool(_) | Matcher::Absent => Vec::new(),
    }
}

pub(super) fn patterns(matcher: &Matcher) -> &[Pattern] {
    match matcher {
        Matcher::Text { patterns, .. } => patterns,
        Matcher::Int(_) | Matcher::Bool(_) | Matcher::Contains(_) | Matcher::Absent => &[],
    }
}

/// The text before anything open.
pub(super) fn fixed_prefix(pattern: &Pattern) -> String {
    let text = pattern.text();
    if let Pattern::Glob(_) = pattern {
        return text.split('*').next().unwrap_or(text).to_owned();
    }
    let (mut prefix, mut chars) = (String::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            // A character that is meant as it is.
            '\\' if chars.peek().is_some_and(char::is_ascii_punctuation) => prefix.extend(chars.next()),
            c if ".*+?[](){}|\\^$".contains(c) => {
                // The one before may be there any number of times.
                if matches!(c, '*' | '?' | '{') {
                    prefix.pop();
                }
                return prefix;
            }
            c => prefix.push(c),
        }
    }
    prefix
}

/// Whether a fixed prefix goes past the owner: `acme/`, `repo:acme/`, `organization:acme:`.
pub(super) fn names_an_owner(prefix: &str, owner_after: usize) -> bool {
    prefix.replace("://", ":").matches(['/', ':']).count() >= owner_after
}

/// Whether a pattern leaves the whole name of a branch or tag open.
pub(super) fn matches_any_ref(pattern: &Pattern) -> bool {
    let probes = ["qzxkw", "evil", "qzxkw/zk", "qzxkw/zk/zk", "some-branch-that-nobody-thought-of"];
    ["", "refs/heads/", "refs/tags/"]
        .iter()
        .any(|prefix| probes.iter().any(|name| pattern.is_match(&format!("{prefix}{name}"))))
}

/// Whether a pattern is open right behind or, a glob, right before a letter or digit: `main*`, `main.*`, `*main`.
pub(super) fn ends_inside_a_name(pattern: &Pattern) -> bool {
    let text = pattern.text();
    if matches!(pattern, Pattern::Glob(_))
        && text.split('*').skip(1).any(|after| after.starts_with(char::is_alphanumeric))
    {
        return true;
    }
    let head = match pattern {
        Pattern::Glob(_) => text.strip_suffix('*'),
        Pattern::Regex(_) => {
            [".*", ".+", r"\S*", r"\S+", "[^/]*", "[^/]+"].iter().find_map(|open| text.strip_suffix(open))
        }
    };
    // The tags of versions are `v*`.
    let named = |head: &str| head.rsplit('/').next().is_some_and(|last| last != "v");
    head.is_some_and(|head| named(head) && head.ends_with(|c: char| c.is_alphanumeric()))
}

/// Whether more than a separator follows what is open.
pub(super) fn has_gap(pattern: &Pattern) -> bool {
    let opens: &[&str] = match pattern {
        Pattern::Glob(_) => &["*"],
        Pattern::Regex(_) => &[".*", ".+", "[^/]*", "[^/]+", "[^:]*", "[^:]+", r"\w+", r"\S+"],
    };
    let after = opens.iter().filter_map(|open| pattern.text().split_once(open)).map(|(_, after)| after);
    after.max_by_key(|after| after.len()).is_some_and(|after| !after.trim_matches(['/', '*']).is_empty())
}

/// Whether a glob's first `*` is where a branch's or tag's own name begins, and more follows: `*-release`.
pub(super) fn begins_open(pattern: &Pattern) -> bool {
    let Pattern::Glob(glob) = pattern else { return false };
    let Some((before, after)) = glob.text().split_once('*') else { return false };
    let begins = before.is_empty() || ["refs/heads/", "refs/tags/", ":ref:", "@"].iter().any(|m| before.ends_with(m));
    begins && after.starts_with(|c: char| c.is_alphanumeric() || "-_.".contains(c))
}

pub(super) fn is_exact(pattern: &Pattern) -> bool {
    match pattern {
        Pattern::Glob(glob) => !glob.text().contains('*'),
        Pattern::Regex(regex) => !regex.text().contains(|c| ".*+?[](){}|\\^$".contains(c)),
    }
}

/// Whether everything that `narrow` matches is matched by `wide`, as far as it is easily seen.
pub(super) fn is_within(narrow: &Matcher, wide: &Matcher) -> bool {
    match (narrow, wide) {
        (Matcher::Absent, Matcher::Absent) => true,
        (Matcher::Contains(a), Matcher::Contains(b)) => a == b,
        (Matcher::Text { exact, patterns }, Matcher::Text { patterns: wide_patterns, .. }) => {
            exact.iter().all(|text| accepts(wide, text))
                && patterns.iter().all(|p| wide_patterns.iter().any(|w| w.to_string() == p.to_string()))
        }
        (Matcher::Int(a), Matcher::Int(b)) => a.iter().all(|n| b.contains(n)),
        (Matcher::Bool(a), Matcher::Bool(b)) => a.iter().all(|n| b.contains(n)),
        _ => false,
    }
}

/// What of a regular expression's text is easily misread.
#[derive(Default)]
pub(super) struct RegexShape {
    pub(super) alternation: bool,
    pub(super) wildcard: bool,
    pub(super) any_character: bool,
    pub(super) case_insensitive: bool,
}

impl RegexShape {
    pub(super) fn of(text: &str) -> Self {
        let (mut shape, mut depth, mut in_class) = (Self::default(), 0_usize, false);
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' => drop(chars.next()),
                '[' if !in_class => in_class = true,
                ']' if in_class => in_class = false,
                _ if in_class => {}
                '(' => {
                    depth += 1;
                    let flags = chars.clone().skip(1).take_while(|c| c.is_ascii_alphabetic()).collect::<String>();
                    shape.case_insensitive |= chars.peek() == Some(&'?') && flags.contains('i');
                }
                ')' => depth = depth.saturating_sub(1),
                '|' if depth == 0 => shape.alternation = true,
                '.' if matches!(chars.peek(), Some('*' | '+' | '{')) => shape.wildcard = true,
                '.' => shape.any_character = true,
                _ => {}
            }
        }
        shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_easily_misread() {
        for (text, alternation, wildcard, any_character) in [
            ("a|b", true, false, false),
            ("(a|b)", false, false, false),
            (r"a\|b", false, false, false),
            ("[|.]", false, false, false),
            ("a.*", false, true, false),
            (r"a\.b", false, false, false),
            ("a.b", false, false, true),
        ] {
            let shape = RegexShape::of(text);
            assert_eq!(
                (shape.alternation, shape.wildcard, shape.any_character),
                (alternation, wildcard, any_character),
                "{text}"
            );
        }
        for (text, expected) in [
            ("TODO", true),
            ("<owner-id>", true),
            ("${OWNER}", true),
            ("your-org", true),
            ("acme", false),
            ("1001", false),
        ] {
            assert_eq!(is_placeholder(text), expected, "{text}");
        }
    }
}
