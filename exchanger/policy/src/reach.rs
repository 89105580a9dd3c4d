//! `who-can` and `what-can`: what policies let in, as sets in words, most permissive first.
//!
//! Everything is computed from the matchers; no token is tried.

use crate::{
    claims::{Claims, Held, Value},
    diff::{Samplers, forbids},
    document::Mode,
    grant::{Grant, PolicySet},
    issuer::{Kind, Profile},
    pattern::{Matcher, Pattern, plain},
    region::Region,
    source::did_you_mean,
    values::{held, language},
};
use jobpass_protocol::{GrantName, IssuerName, RuleName};
use regex::Regex;
use serde::Serialize;
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

/// Members of every token that no policy speaks of.
const REGISTERED: [&str; 6] = ["iss", "aud", "exp", "nbf", "iat", "jti"];

/// Who can have a grant.
#[derive(Debug, Serialize)]
pub struct Reach {
    /// The grant.
    pub grant: GrantName,
    /// Whom each rule lets in, most permissive first.
    pub rules: Vec<Set>,
    /// Whom guards keep out.
    pub forbidden: Vec<Set>,
}

/// A set of tokens.
#[derive(Debug, Serialize)]
pub struct Set {
    /// The rule or guard.
    pub rule: RuleName,
    /// The issuer of the tokens.
    pub issuer: IssuerName,
    /// The set in words.
    pub words: String,
    /// What each claim must be; all of it.
    pub claims: BTreeMap<String, Vec<Values>>,
    /// Conditions that must hold as well.
    pub conditions: Vec<String>,
    /// Whether no token can be in it.
    pub empty: bool,
    /// Rules that let in all of it too.
    pub within: Vec<RuleName>,
    /// Decided and audited, never issued.
    pub shadow: bool,
    /// Whether claims of an unknown form are in it, as guards have it.
    #[serde(skip)]
    unusable: bool,
    #[serde(skip)]
    profile: Arc<Profile>,
}

/// Values of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Values {
    /// Any of these texts, numbers or truth values, or what one of the patterns matches.
    AnyOf {
        /// Listed values.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        exact: Vec<String>,
        /// The patterns as they are written.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        patterns: Vec<String>,
        /// All of it as one regular expression for the whole value.
        regex: String,
    },
    /// A list with this item.
    Contains(String),
    /// No value.
    Absent,
}

impl Reach {
    /// Whether a token is in the set of those that get the grant; `None` where a condition that is
    /// more than comparisons decides.
    #[must_use]
    pub fn contains(&self, issuer: &IssuerName, claims: &Claims) -> Option<bool> {
        let any = |sets: &[Set]| {
            let inside: Vec<_> =
                sets.iter().filter(|set| !set.shadow).map(|set| set.contains(issuer, claims)).collect();
            if inside.contains(&Some(true)) { Some(true) } else { (!inside.contains(&None)).then_some(false) }
        };
        match (any(&self.rules), any(&self.forbidden)) {
            (Some(false), _) | (_, Some(true)) => Some(false),
            (Some(true), Some(false)) => Some(true),
            _ => None,
        }
    }
}

impl Set {
    fn of(region: &Region<'_>, rule: &RuleName, samplers: &mut Samplers) -> Self {
        let sampler = samplers.of(region.profile);
        let empty = region.point().iter().any(|(claim, lines)| sampler.leaves_any(claim, lines) == Some(false));
        let mut claims: BTreeMap<String, Vec<Values>> = BTreeMap::new();
        for (claim, matcher) in &region.lines {
            let values = Values::of(matcher);
            let known = claims.entry((*claim).to_owned()).or_default();
            if !known.contains(&values) {
                known.push(values);
            }
        }
        Self {
            rule: rule.clone(),
            issuer: region.issuer.clone(),
            words: words(region),
            claims,
            conditions: region.conditions.iter().map(|condition| condition.source().to_owned()).collect(),
            empty,
            within: Vec::new(),
            shadow: false,
            unusable: false,
            profile: Arc::clone(region.profile),
        }
    }

    /// Whether a token is in it; `None` where a condition decides.
    #[must_use]
    pub fn contains(&self, issuer: &IssuerName, claims: &Claims) -> Option<bool> {
        let fits = |(claim, values): (&String, &Vec<Values>)| {
            let held = self.profile.slot(claim).map(|slot| claims.held(&slot));
            held.is_some_and(|held| {
                (self.unusable && *held == Held::Unusable) || values.iter().all(|values| values.contain(held))
            })
        };
        let inside =
            self.issuer == *issuer && Arc::ptr_eq(&self.profile, claims.profile()) && self.claims.iter().all(fits);
        if inside && !self.conditions.is_empty() { None } else { Some(inside) }
    }

    /// How little it lets in, to compare sets of which none is within the other.
    fn narrowness(&self) -> usize {
        let line = |values: &Values| match values {
            Values::AnyOf { exact, patterns, .. } if patterns.is_empty() => 1000 / (1 + exact.len()),
            Values::AnyOf { .. } => 100,
            Values::Contains(_) => 300,
            Values::Absent => 500,
        };
        self.claims.values().flatten().map(line).sum::<usize>() + 200 * self.conditions.len()
    }
}

impl Values {
    fn of(matcher: &Matcher) -> Self {
        let listed = |exact: Vec<String>| Self::AnyOf {
            regex: exact.iter().map(|text| regex::escape(text)).collect::<Vec<_>>().join("|"),
            exact,
            patterns: Vec::new(),
        };
        match matcher {
            Matcher::Absent => Self::Absent,
            Matcher::Contains(item) => Self::Contains(item.to_string()),
            Matcher::Int(numbers) => listed(numbers.iter().map(ToString::to_string).collect()),
            Matcher::Bool(truths) => listed(truths.iter().map(ToString::to_string).collect()),
            Matcher::Text { exact, patterns } => {
                // A listed value that a pattern matches anyway says nothing.
                let bare = exact.iter().filter(|text| !patterns.iter().any(|pattern| pattern.is_match(text)));
                Self::AnyOf {
                    exact: bare.map(ToString::to_string).collect(),
                    patterns: patterns.iter().map(ToString::to_string).collect(),
                    regex: language(exact, patterns),
                }
            }
        }
    }

    fn contain(&self, held: &Held) -> bool {
        match (self, held) {
            (Self::Absent, held) => *held == Held::Absent,
            (Self::Contains(item), Held::Is(Value::List(items))) => items.iter().any(|known| **known == **item),
            (Self::AnyOf { exact, patterns, regex }, Held::Is(value)) => value.text().is_some_and(|text| {
                let matches = || Regex::new(&format!(r"\A(?:{regex})\z")).is_ok_and(|regex| regex.is_match(&text));
                exact.iter().any(|exact| *exact == text) || (!patterns.is_empty() && matches())
            }),
            _ => false,
        }
    }
}

/// Who can have a grant.
#[must_use]
pub fn who_can(set: &PolicySet, grant: &Grant) -> Reach {
    let mut samplers = Samplers::default();
    let regions: Vec<Region<'_>> = grant.rules.iter().map(Region::of).collect();
    let rules = grant.rules.iter().zip(&regions).enumerate().map(|(index, (rule, region))| {
        let mut set = Set::of(region, &rule.name, &mut samplers);
        set.shadow = grant.mode == Mode::Shadow || rule.mode == Mode::Shadow;
        let others = grant.rules.iter().zip(&regions).enumerate().filter(|(other, _)| *other != index && !set.empty);
        let around = others.filter(|(_, (_, other))| region.is_within(other, samplers.of(&rule.profile)));
        set.within = around.map(|(_, (other, _))| other.name.clone()).collect();
        set
    });
    let rules = sorted(rules.collect());
    let guards = forbids(set, grant).filter(|forbid| grant.rules.iter().any(|rule| rule.issuer == forbid.issuer));
    let forbidden =
        guards.map(|forbid| Set { unusable: true, ..Set::of(&Region::forbidden(forbid), &forbid.name, &mut samplers) });
    let forbidden = forbidden.collect();
    Reach { grant: grant.name.clone(), rules, forbidden }
}

/// Most permissive first: a set before all those that are within it.
fn sorted(mut sets: Vec<Set>) -> Vec<Set> {
    sets.sort_by(|a, b| (a.empty, a.narrowness(), &a.rule).cmp(&(b.empty, b.narrowness(), &b.rule)));
    let mut sorted: Vec<Set> = Vec::with_capacity(sets.len());
    while !sets.is_empty() {
        let waits = |set: &Set| {
            let wider = |other: &&Set| set.within.contains(&other.rule) && !other.within.contains(&set.rule);
            sets.iter().any(|other| wider(&other))
        };
        let next = sets.iter().position(|set| !waits(set)).unwrap_or(0);
        sorted.push(sets.remove(next));
    }
    sorted
}

/// Something that a job can have.
#[derive(Debug, Serialize)]
pub struct Possibility {
    /// The grant.
    pub grant: GrantName,
    /// The rule that gives it.
    pub rule: RuleName,
    /// The issuer of the token.
    pub issuer: IssuerName,
    /// What else must be true, in words; nothing, where the job can have it as it is.
    pub needs: Option<String>,
    /// Claims that were not given and have to be something.
    pub open: BTreeSet<String>,
}

/// Why there is no answer to what a job can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhatCanError {
    /// No issuer's tokens have that claim.
    #[error("no issuer of these policies has a claim `{claim}`{}", .nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownClaim {
        /// The claim.
        claim: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
}

/// What a job can have of which these claims are known, most easily had first. A claim given as null
/// is known to be absent.
///
/// # Errors
/// When no issuer's tokens have one of the claims.
pub fn what_can(
    set: &PolicySet,
    issuer: Option<&IssuerName>,
    given: &BTreeMap<String, Json>,
) -> Result<Vec<Possibility>, WhatCanError> {
    let given: BTreeMap<String, Json> = given
        .iter()
        .filter(|(name, _)| !REGISTERED.contains(&name.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let rules = || set.grants().flat_map(|grant| grant.rules.iter().map(move |rule| (grant, rule)));
    if let Some(unknown) = given.keys().find(|name| !rules().any(|(_, rule)| rule.profile.claim(name).is_some())) {
        let known = rules().flat_map(|(_, rule)| rule.profile.claims().map(|claim| &*claim.name));
        let nearest = did_you_mean(unknown, known).map(str::to_owned);
        return Err(WhatCanError::UnknownClaim { claim: unknown.clone(), nearest });
    }
    let mut found = Vec::new();
    for (grant, rule) in rules() {
        let issued = grant.mode == Mode::Enforce && rule.mode == Mode::Enforce;
        if !issued || issuer.is_some_and(|issuer| rule.issuer != *issuer) {
            continue;
        }
        let Some(known) = known(&rule.profile, &given) else { continue };
        let mut region = Region::of(rule);
        let fits = |(claim, matcher): &(&str, &Matcher)| known.get(*claim).is_none_or(|held| matcher.is_match(held));
        if !region.lines.iter().all(fits) {
            continue;
        }
        let barred = forbids(set, grant).map(Region::forbidden).any(|guard| {
            guard.issuer == &rule.issuer
                && guard.conditions.is_empty()
                && guard
                    .lines
                    .iter()
                    .all(|(claim, matcher)| known.get(*claim).is_some_and(|held| matcher.is_match(held)))
        });
        if barred {
            continue;
        }
        region.lines.retain(|(claim, _)| !known.contains_key(*claim));
        let open = region.lines.iter().map(|(claim, _)| *claim);
        let read = region.conditions.iter().flat_map(|condition| condition.reads());
        let open = open.chain(read).map(str::to_owned).collect();
        let free = region.lines.is_empty() && region.conditions.is_empty();
        found.push(Possibility {
            grant: grant.name.clone(),
            rule: rule.name.clone(),
            issuer: rule.issuer.clone(),
            needs: (!free).then(|| phrases(&region, &known).1),
            open,
        });
    }
    found.sort_by(|a, b| (a.open.len(), &a.grant, &a.rule).cmp(&(b.open.len(), &b.grant, &b.rule)));
    Ok(found)
}

/// The given claims and those that are cut out of them; `None` where the CI's tokens have not all of them.
fn known(profile: &Profile, given: &BTreeMap<String, Json>) -> Option<BTreeMap<String, Held>> {
    let mut known = BTreeMap::new();
    for (name, value) in given {
        let kind = profile.claim(name)?.kind;
        let typed = match (kind, value) {
            (Kind::Int, Json::String(text)) => text.parse::<i64>().map_or(Json::Bool(false), Json::from),
            (Kind::Bool, Json::String(text)) => text.parse::<bool>().map_or(Json::from(0), Json::from),
            (Kind::Text, Json::Number(_) | Json::Bool(_)) => value.to_string().into(),
            (Kind::List, Json::String(item)) => vec![item.as_str()].into(),
            _ => value.clone(),
        };
        known.insert(name.clone(), held(kind, &typed));
    }
    for derivation in profile.derivations() {
        let from = profile.claim_at(derivation.from).and_then(|claim| known.get(&*claim.name)).cloned();
        let Some(from) = from else { continue };
        let text = from.value().and_then(Value::text);
        let captures =
            text.as_deref().and_then(|text| derivation.patterns.iter().find_map(|pattern| pattern.captures(text)));
        for (name, _) in &derivation.targets {
            let part = captures.as_ref().and_then(|captures| captures.name(name));
            let held = part.map_or(Held::Absent, |part| Held::Is(Value::Text(part.as_str().into())));
            known.entry(name.clone()).or_insert(held);
        }
    }
    Some(known)
}

/// A set of tokens in words.
pub(crate) fn words(region: &Region<'_>) -> String {
    let (subject, rest) = phrases(region, &BTreeMap::new());
    let subject = subject.unwrap_or_else(|| region.profile.words().any.clone());
    if rest.is_empty() { subject } else { format!("{subject} {rest}") }
}

/// Which jobs, if that is said, and everything else that is said of them.
fn phrases(region: &Region<'_>, known: &BTreeMap<String, Held>) -> (Option<String>, String) {
    let (vocabulary, lint) = (region.profile.words(), region.profile.lint());
    let mut rest: Vec<(&str, &Matcher)> = Vec::new();
    for line in &region.lines {
        if !rest.iter().any(|(claim, matcher)| *claim == line.0 && matcher.to_string() == line.1.to_string()) {
            rest.push(*line);
        }
    }
    let mut take = |claim: &str| {
        let taken: Vec<_> = rest.iter().filter(|(known, _)| *known == claim).map(|(_, matcher)| *matcher).collect();
        rest.retain(|(known, _)| *known != claim);
        taken
    };
    // `branch` of `ref_type` belongs to the ref.
    let ref_type = lint.ref_type.as_ref().and_then(|ref_type| {
        let by = ref_type.by.as_deref().filter(|by| lint.event.as_deref() != Some(by))?;
        let bound = |claim: &String| region.lines.iter().any(|(known, _)| known == claim);
        let value = region.lines.iter().find(|(claim, _)| *claim == by)?.1.exact()?.concat();
        (ref_type.claims.iter().any(bound) && ["branch", "tag"].contains(&&*value)).then_some((by, value))
    });
    let ref_type = ref_type.map(|(by, value)| {
        take(by);
        value
    });
    let say = |claim: &str, template: &str, matchers: &[&Matcher]| {
        let is_ref = lint.ref_type.as_ref().is_some_and(|ref_type| ref_type.claims.iter().any(|known| known == claim));
        let of_type = ref_type.as_deref().filter(|_| is_ref);
        let said = matchers.iter().map(|matcher| match matcher {
            Matcher::Absent => format!("without {claim}"),
            Matcher::Contains(item) => format!("with {item} among {claim}"),
            _ => template.replace("{}", &spoken(matcher, of_type)),
        });
        said.collect::<Vec<_>>().join(" and ")
    };
    let mut subject = Vec::new();
    for (claim, template) in &vocabulary.which {
        let matchers = take(claim);
        if !matchers.is_empty() {
            subject.push(say(claim, template, &matchers));
        }
    }
    let event = lint.event.as_deref();
    let mut said = Vec::new();
    for (claim, template) in vocabulary.say.iter().filter(|(claim, _)| Some(claim.as_str()) != event) {
        let matchers = take(claim);
        if !matchers.is_empty() {
            said.push(say(claim, template, &matchers));
        }
    }
    let on =
        vocabulary.say.iter().find(|(claim, _)| Some(claim.as_str()) == event).map_or("with event {}", |(_, on)| on);
    let events = event.map(&mut take).unwrap_or_default();
    said.extend(rest.iter().map(|(claim, matcher)| say(claim, &format!("with {claim} {{}}"), &[*matcher])));
    let mut out = said.join(" ");
    let risky = || lint.events_review.iter().chain(&lint.events_dangerous);
    if let Some(event) = event.filter(|event| !known.contains_key(*event)) {
        let matches = |value: &&String| {
            let held = Held::Is(Value::Text(value.as_str().into()));
            events.iter().all(|matcher| matcher.is_match(&held))
        };
        let comma = if out.is_empty() { "" } else { ", " };
        if events.is_empty() {
            let named: Vec<_> = risky().map(String::as_str).collect();
            let also = named.get(..3).unwrap_or(&named).join(", ");
            let more = if named.len() > 3 { ", …" } else { "" };
            out.push_str(&format!("{comma}on any event"));
            if !also.is_empty() {
                out.push_str(&format!(", also {also}{more}"));
            }
        } else {
            out.push_str(&format!("{comma}{}", say(event, on, &events)));
            let not: Vec<_> = lint.events_review.iter().filter(|value| !matches(value)).map(String::as_str).collect();
            if !not.is_empty() {
                out.push_str(&format!(", not {}", not.join(" or ")));
            }
        }
    }
    for condition in &region.conditions {
        out.push_str(&format!(", and only if `{}`", condition.source()));
    }
    ((!subject.is_empty()).then(|| subject.join(" in ")), out)
}

/// The values in words: `branch main or dev`.
fn spoken(matcher: &Matcher, of_type: Option<&str>) -> String {
    let pattern = |pattern: &Pattern| match pattern {
        Pattern::Glob(glob) => glob.text().to_owned(),
        Pattern::Regex(regex) => format!("/{}/", regex.text()),
    };
    let mut values: Vec<String> = match matcher {
        Matcher::Text { exact, patterns } => {
            exact.iter().map(|text| text.to_string()).chain(patterns.iter().map(pattern)).collect()
        }
        _ => matcher.exact().unwrap_or_default(),
    };
    for value in &mut values {
        *value = plain(value);
        let short = [("refs/heads/", "branch"), ("refs/tags/", "tag")];
        let short = short.into_iter().find_map(|(prefix, kind)| Some((kind, value.strip_prefix(prefix)?)));
        if value.is_empty() {
            *value = "(empty)".to_owned();
        } else if let Some((kind, name)) = short {
            *value = format!("{kind} {name}");
        } else if let Some(kind) = of_type {
            *value = format!("{kind} {value}");
        }
    }
    let last = values.pop().unwrap_or_default();
    if values.is_empty() { last } else { format!("{} or {last}", values.join(", ")) }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.grant)?;
        for set in &self.rules {
            writeln!(f, "  {}", set.words)?;
            write!(f, "      rule {}, tokens of {}", set.rule, set.issuer)?;
            for rule in &set.within {
                write!(f, "; all of it also by rule {rule}")?;
            }
            if set.empty {
                write!(f, "; no token can be so")?;
            }
            writeln!(f, "{}", if set.shadow { "; only tried out (mode: shadow)" } else { "" })?;
        }
        for set in &self.forbidden {
            writeln!(f, "  but never {}", set.words)?;
            writeln!(f, "      guard {}, tokens of {}", set.rule, set.issuer)?;
        }
        Ok(())
    }
}

impl fmt::Display for Possibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rule {}, tokens of {})", self.grant, self.rule, self.issuer)?;
        match &self.needs {
            None => Ok(()),
            Some(needs) => write!(f, ", if {needs}"),
        }
    }
}
