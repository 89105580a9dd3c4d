//! Trials: whether a rule could permit a job of which something is known, by asking the rule itself. What its
//! lines and its condition look like does not matter, only which values get through.

use super::shape::{fixed_prefix, patterns, texts};
use crate::{
    claims::{Claims, Held, Value},
    condition::Known,
    fixtures::FIXTURES,
    grant::Rule,
    issuer::{Kind, Profile, Slot},
    pattern::{Matcher, Pattern},
};
use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, LazyLock},
};

/// What no team would call anything.
const NOBODYS: [&str; 3] = ["qzxkw", "42424243", "zk-1-qz"];
/// Branches and tags that anybody who may push can make.
const ANYBODYS: [&str; 4] = ["qzxkw", "evil", "qzxkw/zk", "qzxkw/zk/zk"];
/// What stands right before a branch or tag in a longer text.
const BEFORE_REFS: [&str; 4] = ["refs/heads/", "refs/tags/", ":ref:", "@"];
/// The branch of the fixtures.
const USUAL: &str = "main";

static SEEN: LazyLock<HashMap<&'static str, Vec<Arc<Claims>>>> = LazyLock::new(|| {
    let mut seen: HashMap<_, Vec<_>> = HashMap::new();
    for (name, payload) in FIXTURES {
        let ci = name.split('/').next().unwrap_or(name);
        let claims = Profile::named(ci).and_then(|profile| Claims::parse(&profile, payload.as_bytes()).ok());
        seen.entry(ci).or_default().extend(claims.map(Arc::new));
    }
    seen
});

/// The values that a claim has in real tokens.
pub(super) fn seen(profile: &Profile, claim: &str) -> BTreeSet<String> {
    let tokens = SEEN.get(profile.name()).map_or(&[][..], Vec::as_slice);
    tokens.iter().filter_map(|claims| claims.text(claim).map(|text| text.into_owned())).collect()
}

/// Whether the rule could permit a job in whose token a claim is held so, whatever the other claims are.
pub(super) fn admits(rule: &Rule, claim: &str, held: Held) -> bool {
    // Mostly it is the line on the claim itself that settles it.
    if rule.checks.iter().any(|check| *check.claim == *claim && !check.matcher.is_match(&held)) {
        return false;
    }
    let mut known: Known = parts(&rule.profile, claim, &held);
    known.insert(claim.to_owned(), held);
    let fits = |claim: &str, matcher: &Matcher| known.get(claim).is_none_or(|held| matcher.is_match(held));
    rule.checks.iter().all(|check| fits(&check.claim, &check.matcher))
        && rule.condition.as_ref().is_none_or(|condition| condition.may_hold(&known))
}

/// The same, of a text.
pub(super) fn admits_text(rule: &Rule, claim: &str, text: &str) -> bool {
    held(&rule.profile, claim, text).is_some_and(|held| admits(rule, claim, held))
}

/// What is cut out of a claim.
fn parts(profile: &Profile, claim: &str, held: &Held) -> Known {
    let mut parts = Known::new();
    let is_it = |at: u32| profile.claim_at(at).is_some_and(|known| *known.name == *claim);
    for derivation in profile.derivations().iter().filter(|derivation| is_it(derivation.from)) {
        let text = held.value().and_then(Value::text).unwrap_or_default();
        let captures = derivation.patterns.iter().find_map(|pattern| pattern.captures(&text));
        for (name, _) in &derivation.targets {
            let part = captures.as_ref().and_then(|captures| captures.name(name));
            parts.insert(name.clone(), part.map_or(Held::Absent, |p| Held::Is(Value::Text(p.as_str().into()))));
        }
    }
    parts
}

/// A text as the claim would hold it; `None` where no token has it so.
fn held(profile: &Profile, claim: &str, text: &str) -> Option<Held> {
    let value = match profile.claim(claim)?.kind {
        Kind::Text => Value::Text(text.into()),
        Kind::Int => Value::Int(text.parse().ok()?),
        Kind::Bool => Value::Bool(text.parse().ok()?),
        Kind::List => Value::List([text.into()].into()),
        Kind::Json => return None,
    };
    let is_usable = !matches!(profile.slot(claim), Some(Slot::Known(slot)) if profile.misshapen(slot, text));
    is_usable.then_some(Held::Is(value))
}

/// Whether the rule speaks of a claim, or of what is cut out of it.
pub(super) fn says(rule: &Rule, claim: &str) -> bool {
    let is_it = |name: &str| name == claim || rule.profile.derived_from(name) == Some(claim);
    let conditions = || rule.condition.iter().flat_map(|condition| condition.reads());
    rule.checks.iter().any(|check| is_it(&check.claim)) || conditions().any(is_it)
}

/// Where the rule speaks of a claim.
pub(super) fn place(rule: &Rule, claim: &str) -> Option<Range<usize>> {
    let is_it = |name: &str| name == claim || rule.profile.derived_from(name) == Some(claim);
    let line = rule.checks.iter().find(|check| &*check.claim == claim);
    let line = line.or_else(|| rule.checks.iter().find(|check| is_it(&check.claim)));
    line.map_or_else(|| rule.when_at.clone(), |check| rule.place_of(check))
}

/// Whether the rule says what a claim is: it keeps out whoever has just any value. Not to have the claim
/// may be what it asks for.
pub(super) fn settles(rule: &Rule, claim: &str) -> bool {
    let keeps_out = |text: &str| !admits_text(rule, claim, text);
    let among = match rule.profile.claim(claim) {
        Some(claim) if claim.kind == Kind::Bool => vec!["true", "false"],
        claim => claim.map_or_else(Vec::new, |claim| claim.values.iter().map(String::as_str).collect()),
    };
    says(rule, claim)
        && (among.is_empty() || among.into_iter().any(keeps_out))
        && strangers(&rule.profile, claim).iter().all(|text| keeps_out(text))
}

/// Whether the rule asks for the claim, with values that not just anybody has.
pub(super) fn is_bound(rule: &Rule, claim: &str) -> bool {
    settles(rule, claim) && !admits(rule, claim, Held::Absent)
}

/// Values of a claim that somebody else's job has.
fn strangers(profile: &Profile, name: &str) -> Vec<String> {
    let Some(claim) = profile.claim(name) else { return Vec::new() };
    match claim.kind {
        Kind::Bool | Kind::Json => return Vec::new(),
        Kind::Int => return vec!["42424243".to_owned()],
        Kind::Text | Kind::List => {}
    }
    let mut found: Vec<_> = NOBODYS.iter().map(|text| (*text).to_owned()).collect();
    // A pattern that is open behind its owner is about the owner's.
    let owner_after = claim.owner_after.unwrap_or(if claim.separators.contains('@') { 2 } else { usize::MAX });
    for value in seen(profile, name) {
        let ends = value.match_indices(['/', ':', '-']).map(|(at, _)| at + 1);
        let heads = std::iter::once(0).chain(ends.filter(|end| !value[..*end].ends_with(":/")));
        for head in heads.take(owner_after) {
            let (kept, rest) = value.split_at(head);
            found.push(format!("{kept}{}", twin(rest, 1)));
        }
    }
    found
}

/// A text of the same kinds of characters, with hexadecimal digits as such.
pub(super) fn twin(text: &str, by: u8) -> String {
    let turn = |c: u8, first: u8, count: u8| char::from(first + (c - first + by) % count);
    text.bytes().fold(String::with_capacity(text.len()), |mut twin, c| {
        twin.push(match c {
            b'0'..=b'9' => turn(c, b'0', 10),
            b'a'..=b'f' => turn(c, b'a', 6),
            b'g'..=b'z' => turn(c, b'g', 20),
            b'A'..=b'F' => turn(c, b'A', 6),
            b'G'..=b'Z' => turn(c, b'G', 20),
            c => char::from(c),
        });
        twin
    })
}

/// Whether what bounds the code bounds it: no branch or tag that just anybody can make gets through, and no job
/// that says nothing of it.
pub(super) fn bounds_code(rule: &Rule, claim: &str) -> bool {
    let lint = rule.profile.lint();
    if lint.environment.as_deref() == Some(claim)
        && let Some(protected) = &lint.environment_protected
    {
        return is_bound(rule, claim) && !admits_text(rule, protected, "false");
    }
    is_bound(rule, claim) && !anybodys(rule, claim).iter().any(|text| admits_text(rule, claim, text))
}

/// Values of a claim that a job of anybody's branch has.
fn anybodys(rule: &Rule, claim: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in ANYBODYS {
        found.extend(["", "refs/heads/", "refs/tags/"].map(|prefix| format!("{prefix}{name}")));
    }
    if rule.profile.claim(claim).is_none_or(|claim| claim.separators.is_empty()) {
        return found;
    }
    // Longer texts, in which a branch or tag is a part: what the rule and real tokens have before it.
    let seen = seen(&rule.profile, claim);
    let behind = |value: &'static [char; 3], text: &str| -> Vec<String> {
        text.match_indices(value).map(|(at, _)| text[at + 1..].to_owned()).collect()
    };
    let mut tails: Vec<_> = seen.iter().flat_map(|value| behind(&['/', ':', '@'], value)).collect();
    tails.retain(|tail| tail.split(['/', ':', '@']).any(|part| part == USUAL));
    for seed in seeds(rule, claim).iter().chain(&seen) {
        let marks = BEFORE_REFS.iter().filter_map(|mark| Some(seed.rfind(mark)? + mark.len()));
        let Some(head) = marks.max().and_then(|end| seed.get(..end)) else {
            if seed.contains(ANYBODYS[0]) {
                found.push(seed.clone());
            } else if seed.ends_with(['/', ':']) {
                found.push(format!("{seed}{}", ANYBODYS[0]));
                let tails = tails.iter().flat_map(|tail| ANYBODYS.map(|name| tail.replace(USUAL, name)));
                found.extend(tails.map(|tail| format!("{seed}{tail}")));
            }
            continue;
        };
        found.extend(ANYBODYS.iter().map(|name| format!("{head}{name}")));
        if !head.ends_with("refs/heads/") && !head.ends_with("refs/tags/") {
            found.extend(ANYBODYS.iter().map(|name| format!("{head}refs/heads/{name}")));
        }
    }
    found
}

/// Whether the ref of a pull request gets through.
pub(super) fn permits_reviews(rule: &Rule, claim: &str) -> bool {
    let mut found = seeds(rule, claim);
    found.retain(|seed| seed.starts_with("refs/pull/") || seed.starts_with("refs/merge-requests/"));
    found.extend(["refs/pull/1/merge", "refs/merge-requests/1/head", "refs/heads/pull/1"].map(str::to_owned));
    found.iter().any(|text| admits_text(rule, claim, text))
}

/// A subject that ends so, whatever its numbers, and that the rule permits.
pub(super) fn reviews(rule: &Rule, subject: &str, end: &str) -> Option<String> {
    let (seeds, seen) = (seeds(rule, subject), seen(&rule.profile, subject));
    let all = || seeds.iter().chain(&seen);
    let heads = all().flat_map(|seed| seed.match_indices([':', '/']).map(|(at, _)| format!("{}{end}", &seed[..at])));
    let numbered = |text: &str| {
        let mut text = text.replace(|c: char| c.is_ascii_digit(), "1");
        while text.contains("11") {
            text = text.replace("11", "1");
        }
        text
    };
    let written = all().filter(|seed| numbered(seed).ends_with(end)).cloned();
    says(rule, subject).then(|| heads.chain(written).find(|text| admits_text(rule, subject, text)))?
}

/// Whether jobs for which a claim, or what is cut out of a subject, is this value get through.
pub(super) fn tells_apart(rule: &Rule, claim: &str, value: &str) -> bool {
    let Some(from) = rule.profile.derived_from(claim) else { return admits_text(rule, claim, value) };
    if !rule.checks.iter().any(|check| &*check.claim == from)
        && !rule.condition.iter().flat_map(|condition| condition.reads()).any(|read| read == from)
    {
        return admits_text(rule, claim, value);
    }
    let of = |text: &str| parts(&rule.profile, from, &Held::Is(Value::Text(text.into()))).remove(claim);
    let seen = seen(&rule.profile, from);
    let seeds = seeds(rule, from);
    // The last part of a text is what it may be: `…:run_phase:apply`.
    let heads =
        seeds.iter().chain(&seen).flat_map(|seed| [seed.as_str(), seed.rsplit_once(':').map_or("", |(head, _)| head)]);
    let texts = heads.flat_map(|head| [head.to_owned(), format!("{head}{value}"), format!("{head}:{value}")]);
    let is_value = |text: &String| of(text).is_some_and(|held| held == Held::Is(Value::Text(value.into())));
    texts.filter(is_value).any(|text| admits_text(rule, from, &text))
}

/// Texts that the rule itself writes of a claim: values, what patterns begin with, globs filled in where
/// nothing says yet that a branch or tag begins, and the texts of its condition.
fn seeds(rule: &Rule, claim: &str) -> BTreeSet<String> {
    let mut seeds = BTreeSet::new();
    for check in rule.checks.iter().filter(|check| *check.claim == *claim) {
        seeds.extend(texts(&check.matcher));
        for pattern in patterns(&check.matcher) {
            let prefix = fixed_prefix(pattern);
            if let Pattern::Glob(glob) = pattern
                && prefix.ends_with(['/', ':'])
                && !BEFORE_REFS.iter().any(|mark| prefix.contains(mark))
            {
                seeds.insert(glob.text().replace('*', ANYBODYS[0]));
            }
            seeds.insert(prefix);
        }
    }
    if let Some(condition) = rule.condition.as_ref().filter(|condition| condition.reads().any(|read| read == claim)) {
        seeds.extend(condition.texts().into_iter().map(str::to_owned));
    }
    seeds
}
