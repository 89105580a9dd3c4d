//! What matchers and conditions amount to, as far as their shape shows.

use crate::{
    claims::{Held, Value},
    grant::{Check, Rule},
    issuer::{Claim, Profile},
    pattern::{Glob, Matcher, Pattern, WholeRegex},
};
use regex::Regex;
use std::sync::LazyLock;

static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r"\A(?:todo|tbd|fixme|xxx+|changeme|change-me|your-?.*|my-org|my-repo|example|<.*>|\.\.\.|…)\z|\$\{|\$\(|\{\{|<[a-z_-]+>",
    )
});

/// A fixed expression; one that were wrong would match nothing, and a test would miss it.
fn compiled(text: &str) -> Regex {
    #[expect(clippy::expect_used, reason = "the expressions are constants that every test run compiles")]
    Regex::new(text).expect("a constant expression")
}

pub(super) fn is_placeholder(text: &str) -> bool {
    PLACEHOLDER.is_match(&text.to_lowercase())
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

/// Whether the rule bounds a claim, in a line, in its condition, or by way of a claim that is cut out of it.
pub(super) fn is_bound(rule: &Rule, claim: &str) -> bool {
    let is_it = |name: &str| name == claim || rule.profile.derived_from(name) == Some(claim);
    rule.checks.iter().any(|check| is_it(&check.claim) && !is_open(check, &rule.profile)) || demands(rule, &is_it)
}

/// Whether a line leaves every value of its claim open.
pub(super) fn is_open(check: &Check, profile: &Profile) -> bool {
    let Some(claim) = profile.claim(&check.claim) else { return false };
    patterns(&check.matcher).iter().any(|pattern| matches_anything(pattern, claim))
}

/// Whether a pattern matches texts that have nothing in common.
pub(super) fn matches_anything(pattern: &Pattern, claim: &Claim) -> bool {
    let probes = ["0", "7", "42424242", "a", "main", "qzxkw", "x-1"];
    let possible = probes.iter().filter(|probe| probe.chars().all(|c| claim.may_hold(c)));
    possible.clone().count() > 1 && possible.clone().all(|probe| pattern.is_match(probe))
}

/// Whether the condition cannot hold without saying what a claim is.
fn demands(rule: &Rule, is_it: &dyn Fn(&str) -> bool) -> bool {
    let Some(condition) = &rule.condition else { return false };
    condition.bound().is_none_or(|claims| claims.into_iter().any(is_it))
}

/// Whether what bounds the code bounds it: not by a name of a file alone, which every branch has a copy of,
/// and not by a subject that any branch's jobs have.
pub(super) fn bounds_code(rule: &Rule, claim: &str) -> bool {
    let profile = &rule.profile;
    let lint = profile.lint();
    if lint.environment.as_deref() == Some(claim)
        && let Some(protected) = &lint.environment_protected
    {
        return effective(rule, protected).any(|check| !accepts(&check.matcher, "false"));
    }
    if !is_bound(rule, claim) {
        return false;
    }
    let is_subject = profile.subject() == Some(claim);
    let is_file = profile.claim(claim).is_some_and(|claim| claim.separators.contains('@'));
    let mut lines = rule
        .checks
        .iter()
        .filter(|check| *check.claim == *claim || (is_file && profile.derived_from(&check.claim) == Some(claim)));
    if !(is_subject || is_file) || lines.clone().next().is_none() {
        return true;
    }
    lines.any(|check| match *check.claim == *claim {
        false => check.claim.ends_with("_at") && !patterns(&check.matcher).iter().any(matches_any_ref),
        true if is_file => {
            patterns(&check.matcher).iter().all(|pattern| at_of(pattern).is_some_and(|at| !matches_any_ref(&at)))
        }
        true => {
            let open = [":*", ":ref:refs/heads/*", ":ref:refs/tags/*", ":.*", ":.+", "/.*", "/.+"];
            let is_open = |pattern: &Pattern| {
                !pattern.text().ends_with(":run_phase:*") && open.iter().any(|end| pattern.text().ends_with(end))
            };
            !patterns(&check.matcher).iter().any(is_open)
        }
    })
}

/// The pattern of what comes behind `@`.
fn at_of(pattern: &Pattern) -> Option<Pattern> {
    let (_, at) = pattern.text().rsplit_once('@')?;
    match pattern {
        Pattern::Glob(glob) => Glob::new(at, glob.separators()).ok().map(Pattern::Glob),
        Pattern::Regex(_) => WholeRegex::parse(at).ok().map(Pattern::Regex),
    }
}

/// A text that a glob matches: its last `*` is `value`.
pub(super) fn filled(pattern: &Pattern, value: &str) -> Option<String> {
    let Pattern::Glob(glob) = pattern else { return None };
    let (before, after) = glob.text().rsplit_once('*')?;
    Some(format!("{}{value}{after}", before.replace('*', "x")))
}

pub(super) fn accepts(matcher: &Matcher, text: &str) -> bool {
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
pub(super) fn fixed_prefix(pattern: &Pattern) -> &str {
    let text = pattern.text();
    let end = match pattern {
        Pattern::Glob(_) => text.find('*'),
        Pattern::Regex(_) => text.find(|c| ".*+?[](){}|\\^$".contains(c)),
    };
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

/// Whether a fixed prefix goes past the owner: `acme/`, `repo:acme/`, `organization:acme:`.
pub(super) fn names_an_owner(prefix: &str, owner_after: usize) -> bool {
    prefix.replace("://", ":").matches(['/', ':']).count() >= owner_after
}

/// Whether a pattern leaves the whole name of a branch or tag open.
pub(super) fn matches_any_ref(pattern: &Pattern) -> bool {
    let probes = ["qzxkw", "some-branch-that-nobody-thought-of"];
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
    // One letter is no name: the tags of versions are `v*`.
    let named = |head: &str| head.rsplit('/').next().is_some_and(|last| last.len() > 1);
    head.is_some_and(|head| named(head) && head.ends_with(|c: char| c.is_alphanumeric()))
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
                '(' => depth += 1,
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
