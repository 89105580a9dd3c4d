//! What a grant's file shows to be unwise, though it compiles: one rule per known way to trust more
//! than was meant.
//!
//! Nothing here decides anything. The rules know no CI by name; what they know of one is in its
//! profile. A finding is silenced where it does not count, in the file, with a reason:
//! `allow: [{ lint: ID, reason: … }]` on the grant or the rule.

mod rules;
mod shape;

pub use rules::{LintRule, RULES, rule};

use crate::{
    compile::Compiled,
    document::Disclose,
    grant::{Check, Grant, Rule},
    guards::is_overdue,
    issuer::{Class, Profile, Slot},
    pattern::{Matcher, Pattern},
    source::{Diagnostic, did_you_mean},
};
use regex::Regex;
use shape::{
    RegexShape, accepts, bounds_code, checks_of, effective, ends_inside_a_name, filled, fixed_prefix, is_bound,
    is_exact, is_placeholder, is_within, matches_any_ref, matches_anything, names_an_owner, patterns, texts,
};
use std::{cell::RefCell, collections::BTreeSet, ops::Range, sync::Arc};

/// Everything to be said about a compiled set: its own diagnostics and what linting finds, at `at`
/// (epoch seconds), in the order of files and places.
#[must_use]
pub fn lint(compiled: &Compiled, at: i64) -> Vec<Diagnostic> {
    let mut found = compiled.diagnostics.clone();
    for grant in compiled.set.grants() {
        found.extend(GrantLinter::new(grant).lint(at));
    }
    found.sort_by(|a, b| {
        let key = |d: &Diagnostic| (d.path().to_owned(), d.span().map_or(0, |span| span.start), d.code);
        key(a).cmp(&key(b))
    });
    found
}

/// The longest TTL that is not too long, in seconds.
const LONG_TTL: u32 = 3600;
/// The longest lifetime that is not too long, in seconds.
const LONG_LIFETIME: u32 = 24 * 3600;
const TWO_YEARS: i64 = 2 * 366 * 24 * 3600;

struct GrantLinter<'a> {
    grant: &'a Grant,
    found: Vec<Diagnostic>,
    /// Places of the `allow` entries that silenced something.
    used: RefCell<BTreeSet<usize>>,
}

impl<'a> GrantLinter<'a> {
    fn new(grant: &'a Grant) -> Self {
        Self { grant, found: Vec::new(), used: RefCell::default() }
    }

    fn lint(mut self, at: i64) -> Vec<Diagnostic> {
        self.grant_itself(at);
        for rule in &self.grant.rules {
            self.whose(rule);
            self.which_code(rule);
            self.where_it_runs(rule);
            for (check, place) in rule.checks.iter().zip(&rule.claims_at) {
                self.matcher(rule, check, place);
            }
            self.condition(rule);
            self.shadowed(rule);
        }
        self.allows();
        self.found
    }

    /// Reports a finding, unless it is allowed here.
    fn say(&mut self, id: &'static str, rule: Option<&Rule>, at: &Option<Range<usize>>, what: &str) {
        let allows = self.grant.allow.iter().chain(rule.iter().flat_map(|rule| &rule.allow));
        let mut silenced = false;
        for allow in allows.filter(|allow| allow.lint.value == id) {
            self.used.borrow_mut().extend(allow.at.as_ref().map(|at| at.start));
            silenced = true;
        }
        let Some(lint) = self::rule(id).filter(|_| !silenced) else { return };
        let subject = rule.map(|rule| format!("rule {}: ", rule.name)).unwrap_or_default();
        let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
        let message = format!("{subject}{what}{}", lint.reason);
        let at = at.clone().or_else(|| rule.and_then(|rule| rule.at.clone())).or_else(|| self.grant.at.clone());
        let help = format!("{}; docs/lint.md#{id}", lint.fix);
        let diagnostic = Diagnostic::new(&self.grant.file, at, id, message).with_help(help);
        self.found.push(diagnostic.with_severity(lint.severity));
    }

    fn grant_itself(&mut self, at: i64) {
        let grant = self.grant;
        if grant.ttl > LONG_TTL {
            self.say("ttl-too-long", None, &grant.ttl_at, "");
        }
        if grant.max_lifetime > LONG_LIFETIME {
            self.say("lifetime-too-long", None, &grant.ttl_at, "");
        }
        match grant.review_by() {
            None => self.say("review-missing", None, &None, ""),
            Some(day) if is_overdue(day, at) => self.say("review-past", None, &None, day),
            Some(day) if !is_overdue(day, at.saturating_add(TWO_YEARS)) => self.say("review-far", None, &None, day),
            Some(_) => {}
        }
        if grant.description().is_none_or(|text| text.trim().is_empty()) {
            self.say("description-missing", None, &None, "");
        }
        if !grant.owner().contains('@') {
            self.say("owner-unreachable", None, &None, "");
        }
        if is_placeholder(grant.owner()) {
            self.say("placeholder", None, &None, "`owner`");
        }
        if grant.disclose == Disclose::Full && grant.rules.iter().any(|rule| rule.is_shared) {
            self.say("disclose-full", None, &None, "");
        }
        if grant.cases.is_empty() {
            self.say("no-tests", None, &None, "");
        }
    }

    fn whose(&mut self, rule: &Rule) {
        let profile = &rule.profile;
        if rule.is_shared && !profile.pins_tenant(|claim| rule.pins(claim)) {
            self.say("tenant-by-config-only", Some(rule), &None, "");
        }
        for demand in &profile.lint().demand {
            if !demand.any_of.iter().any(|claim| is_bound(rule, claim)) {
                let what = format!("none of {} is matched; {}", demand.any_of.join(", "), demand.because);
                self.say("unbounded", Some(rule), &None, &what);
            }
        }
        for (check, place) in rule.checks.iter().zip(&rule.claims_at) {
            let Some(claim) = profile.claim(&check.claim) else { continue };
            let source = profile.derived_from(&check.claim).unwrap_or(&check.claim);
            let is_subject = profile.subject() == Some(source);
            if let (Class::Name, Some(id), false) = (claim.class, &claim.id, matches!(check.matcher, Matcher::Absent)) {
                if !is_bound(rule, id) {
                    self.say(
                        "mutable-name-without-id",
                        Some(rule),
                        place,
                        &format!("`{}` without `{id}`", check.claim),
                    );
                }
            } else if is_subject
                && profile.claim(source).is_some_and(|claim| !matches!(claim.class, Class::Stable | Class::Asserted))
                && profile.has_unit_ids()
                && !rule.checks.iter().any(|other| profile.is_unit_id(&other.claim))
            {
                self.say("sub-without-id", Some(rule), place, &format!("`{}`", check.claim));
            }
            let has_owner = claim.class == Class::Name
                && (claim.id.as_deref() == profile.tenant_claim() || (claim.has_alphabet() && claim.may_hold('/')));
            if is_subject || has_owner || claim.owner_after.is_some() || claim.separators.contains('@') {
                let owner_after = claim.owner_after.unwrap_or(if is_subject { 2 } else { 1 });
                // Where the subject is all that there is, each of its parts may be what keeps others out.
                let has_gap = |pattern: &Pattern| {
                    let after = pattern.text().split_once('*').map_or("", |(_, after)| after);
                    is_subject && !profile.has_unit_ids() && !after.trim_matches(['/', '*']).is_empty()
                };
                for pattern in patterns(&check.matcher) {
                    if !names_an_owner(fixed_prefix(pattern), owner_after) || has_gap(pattern) {
                        self.say("wildcard-before-tenant", Some(rule), place, &format!("`{}`", check.claim));
                    }
                }
            }
        }
        let people = ["actor", "actor_id", "user_id", "user_login", "user_email", "initiator", "scm_user_name"];
        if let Some(check) = rule.checks.iter().find(|check| people.contains(&&*check.claim))
            && !profile.lint().code.iter().any(|claim| bounds_code(rule, claim))
        {
            self.say("person-instead-of-code", Some(rule), &rule.place_of(check), &format!("`{}`", check.claim));
        }
    }

    fn which_code(&mut self, rule: &Rule) {
        let profile = Arc::clone(&rule.profile);
        let facts = profile.lint();
        if !facts.code.is_empty() && !facts.code.iter().any(|claim| bounds_code(rule, claim)) {
            self.say("no-ref-or-environment", Some(rule), &None, "");
        }
        if let Some(event) = &facts.event {
            match checks_of(rule, event).next() {
                None if !is_bound(rule, event) => {
                    self.say("event-not-named", Some(rule), &None, &format!("`{event}` is not matched"));
                }
                None => {}
                Some(check) => {
                    let place = rule.place_of(check);
                    let accepts = |events: &[String]| {
                        events
                            .iter()
                            .find(|event| effective(rule, &check.claim).all(|c| accepts(&c.matcher, event)))
                            .cloned()
                    };
                    if let Some(event) = accepts(&facts.events_dangerous) {
                        self.say("dangerous-event", Some(rule), &place, &event);
                    }
                    if let Some(event) = accepts(&facts.events_review) {
                        self.say("review-event", Some(rule), &place, &event);
                    }
                }
            }
        }
        if let Some(fork) = &facts.fork {
            let reviews = match &facts.event {
                Some(event) => {
                    !is_bound(rule, event)
                        || effective(rule, event)
                            .all(|check| facts.events_review.iter().any(|event| accepts(&check.matcher, event)))
                }
                None => true,
            };
            if reviews && !is_bound(rule, &fork.claim) {
                self.say("fork-merge-request", Some(rule), &None, "");
            }
        }
        if let Some(reusable) = &facts.reusable {
            let derived = |check: &&Check| {
                *check.claim == *reusable.claim || profile.derived_from(&check.claim) == Some(&reusable.claim)
            };
            if let Some(check) = rule.checks.iter().find(derived) {
                let place = rule.place_of(check);
                let moves = |pattern: &Pattern| match pattern.text().rsplit_once('@') {
                    Some((_, at)) => at.contains('*') || at.contains(".+"),
                    None => true,
                };
                let at_is_named =
                    checks_of(rule, &format!("{}_at", reusable.claim.trim_end_matches("_ref"))).next().is_some()
                        || rule.checks.iter().any(|check| check.claim.ends_with("workflow_at"));
                let is_whole = *check.claim == *reusable.claim;
                let open = if is_whole { patterns(&check.matcher).iter().any(moves) } else { !at_is_named };
                if open && !is_bound(rule, &reusable.sha) {
                    self.say("reusable-workflow-unpinned", Some(rule), &place, "");
                }
                if !reusable.caller.iter().any(|claim| is_bound(rule, claim)) {
                    self.say("reusable-workflow-without-caller", Some(rule), &place, "");
                }
            }
        }
        if let Some(refs) = &facts.ref_type {
            for check in refs.claims.iter().flat_map(|claim| checks_of(rule, claim)) {
                let says = |text: &str| refs.unless_prefixed.iter().any(|prefix| text.starts_with(prefix.as_str()));
                let exact_is_clear = texts(&check.matcher).iter().all(|text| says(text));
                let patterns_are_clear = patterns(&check.matcher).iter().all(|pattern| says(fixed_prefix(pattern)));
                if exact_is_clear && patterns_are_clear {
                    continue;
                }
                let place = rule.place_of(check);
                match &refs.by {
                    Some(by) if is_bound(rule, by) => {}
                    Some(by) => {
                        self.say("ref-without-type", Some(rule), &place, &format!("`{}` without `{by}`", check.claim))
                    }
                    None => self.say("ref-type-unknown", Some(rule), &place, &format!("`{}`", check.claim)),
                }
            }
        }
    }

    fn where_it_runs(&mut self, rule: &Rule) {
        let profile = Arc::clone(&rule.profile);
        let facts = profile.lint();
        let is_production = |text: &str| text.to_lowercase().contains("prod");
        let environment = facts.environment.iter().flat_map(|claim| checks_of(rule, claim)).next();
        let production = is_production(self.grant.name.as_str())
            || environment.is_some_and(|check| texts(&check.matcher).iter().any(|text| is_production(text)));
        let production = production && rule.is_hosted;
        if let (Some(runner), Some(hosted), true) = (&facts.runner, &facts.runner_hosted, production) {
            match checks_of(rule, runner).next() {
                None if !is_bound(rule, runner) => {
                    self.say("runner-not-named", Some(rule), &None, &format!("`{runner}`"))
                }
                Some(check) if accepts(&check.matcher, "self-hosted") || !accepts(&check.matcher, hosted) => {
                    self.say("self-hosted-production", Some(rule), &rule.place_of(check), "");
                }
                _ => {}
            }
        }
        let protects = |check: &Check| accepts(&check.matcher, "true") && !accepts(&check.matcher, "false");
        if let (Some(check), Some(protected)) = (environment, &facts.environment_protected)
            && !effective(rule, protected).any(protects)
        {
            self.say("environment-unprotected", Some(rule), &rule.place_of(check), &format!("`{protected}`"));
        }
        for check in rule.checks.iter().filter(|check| check.claim.ends_with("_protected")) {
            if accepts(&check.matcher, "false") {
                self.say("asks-for-unprotected", Some(rule), &rule.place_of(check), &format!("`{}`", check.claim));
            }
        }
        for (claim, values) in &facts.apart {
            let is_together = |check: &&Check| {
                let accepted = values.iter().filter(|value| match *check.claim == **claim {
                    true => accepts(&check.matcher, value),
                    false => patterns(&check.matcher).iter().any(|pattern| {
                        let subject = filled(pattern, value);
                        subject.is_some_and(|text| profile.is_subject(&check.claim, &text) && pattern.is_match(&text))
                    }),
                });
                accepted.count() > 1
            };
            let says = |check: &&Check| *check.claim == **claim || profile.subject() == Some(&check.claim);
            if let Some(check) = rule.checks.iter().filter(says).find(is_together) {
                self.say("phases-together", Some(rule), &rule.place_of(check), &values.join(", "));
            }
        }
        for (claim, values) in &facts.refuse {
            for check in checks_of(rule, claim) {
                if let Some(value) = values.iter().find(|value| accepts(&check.matcher, value)) {
                    self.say("refused-value", Some(rule), &rule.place_of(check), &format!("`{claim}` {value}"));
                }
            }
        }
    }

    fn matcher(&mut self, rule: &Rule, check: &Check, at: &Option<Range<usize>>) {
        let profile = Arc::clone(&rule.profile);
        let Some(claim) = profile.claim(&check.claim) else { return };
        let name = format!("`{}`", check.claim);
        let facts = profile.lint();
        if matches!(check.matcher, Matcher::Absent)
            && profile.required_claims().iter().any(|required| **required == *check.claim)
        {
            self.say("never-absent", Some(rule), at, &name);
        }
        for value in texts(&check.matcher) {
            let is_number = claim.class == Class::Stable && !claim.may_hold('a') && claim.may_hold('0');
            let impossible = !claim.could_be(&value)
                || (profile.subject() == Some(&check.claim) && !profile.is_subject(&check.claim, &value))
                || (is_number && value.len() > 1 && value.starts_with('0'));
            if value.is_empty() {
                self.say("empty-value", Some(rule), at, &name);
            } else if is_placeholder(&value) {
                self.say("placeholder", Some(rule), at, &format!("{name} {value}"));
            } else if value.trim() != value || !value.is_ascii() || value.chars().any(char::is_control) {
                self.say("odd-characters", Some(rule), at, &format!("{name} {value:?}"));
            } else if impossible {
                let nearest = did_you_mean(&value, claim.values.iter().map(String::as_str));
                let nearest = nearest.map(|value| format!(" (did you mean {value}?)")).unwrap_or_default();
                self.say("impossible-value", Some(rule), at, &format!("{name} {value}{nearest}"));
            } else if claim.fold_case
                && value.chars().any(|c| c.is_ascii_uppercase())
                && !claim.id.as_ref().is_some_and(|id| is_bound(rule, id))
            {
                self.say("mixed-case", Some(rule), at, &format!("{name} {value}"));
            }
        }
        if let Some(refs) =
            facts.ref_type.as_ref().filter(|refs| refs.claims.iter().any(|claim| **claim == *check.claim))
        {
            let types = refs.by.iter().flat_map(|by| effective(rule, by)).collect::<Vec<_>>();
            let all = texts(&check.matcher);
            let only = |prefix: &str| {
                !all.is_empty()
                    && all.iter().all(|text| text.starts_with(prefix))
                    && patterns(&check.matcher).is_empty()
            };
            for (prefix, kind) in [("refs/heads/", "branch"), ("refs/tags/", "tag")] {
                if only(prefix) && types.iter().any(|check| !accepts(&check.matcher, kind)) {
                    self.say("contradiction", Some(rule), at, &format!("{name} is a {kind}"));
                }
            }
        }
        if ["head_ref", "base_ref"].contains(&&*check.claim)
            && texts(&check.matcher).iter().any(|text| !text.is_empty())
        {
            self.say("pull-request-claim", Some(rule), at, &name);
        }
        let all = texts(&check.matcher);
        let is_code = facts.code.iter().any(|code| **code == *check.claim);
        if is_code && all.iter().any(|text| ["refs/pull/", "refs/merge-requests/"].iter().any(|p| text.starts_with(p)))
        {
            self.say("pull-request-ref", Some(rule), at, &name);
        }
        if let Some(end) = facts.review_subject.as_ref().filter(|_| profile.subject() == Some(&check.claim)) {
            let reviews =
                |pattern: &Pattern| filled(pattern, end.trim_start_matches(':')).is_some_and(|t| t.ends_with(&**end));
            if all.iter().any(|text| text.ends_with(&**end)) || patterns(&check.matcher).iter().any(reviews) {
                self.say("review-event", Some(rule), at, &format!("{name} {end}"));
            }
        }
        if facts.run.iter().any(|run| **run == *check.claim)
            && (!all.is_empty() || matches!(check.matcher, Matcher::Int(_)))
        {
            self.say("one-run-only", Some(rule), at, &name);
        }
        let is_weak =
            |weak: &str| weak.strip_suffix('*').map_or(weak == &*check.claim, |start| check.claim.starts_with(start));
        let known = profile.claims().any(|known| known.name == check.claim);
        if let Some((_, why)) = facts.weak.iter().find(|(weak, _)| is_weak(weak) && !(known && **weak == *"*")) {
            self.say("weak-claim", Some(rule), at, &format!("{name}: {why}"));
        }
        if let Some(form) =
            facts.catch_all.get(&*check.claim).and_then(|form| Regex::new(&format!(r"\A(?:{form})\z")).ok())
            && let Some(value) = all.iter().find(|value| form.is_match(value))
        {
            self.say("catch-all-value", Some(rule), at, &format!("{name} {value}"));
        }
        if facts.free_text.iter().any(|free| **free == *check.claim) {
            self.say("free-text-claim", Some(rule), at, &name);
        }
        for pattern in patterns(&check.matcher) {
            if matches_anything(pattern, claim) {
                self.say("matches-anything", Some(rule), at, &format!("{name} {pattern}"));
            }
            if is_code && ["refs/pull/1/merge", "refs/merge-requests/1/head"].iter().any(|text| pattern.is_match(text))
            {
                self.say("pull-request-ref", Some(rule), at, &name);
            }
            let environment = facts.environment.as_ref().is_some_and(|claim| is_bound(rule, claim));
            if is_code && !environment && matches_any_ref(pattern) {
                self.say("any-ref", Some(rule), at, &name);
            } else if ends_inside_a_name(pattern) {
                self.say("open-end", Some(rule), at, &format!("{name} {pattern}"));
            }
            if is_exact(pattern) {
                self.say("pattern-is-exact", Some(rule), at, &format!("{name} {pattern}"));
            }
            if let Pattern::Regex(regex) = pattern {
                let shape = RegexShape::of(regex.text());
                for (id, is_so) in [
                    ("regex-top-level-alternation", shape.alternation),
                    ("regex-wildcard", shape.wildcard),
                    ("regex-any-character", shape.any_character),
                    ("regex-case-insensitive", regex.text().contains("(?i")),
                ] {
                    if is_so {
                        self.say(id, Some(rule), at, &format!("{name} {pattern}"));
                    }
                }
            }
        }
    }

    fn condition(&mut self, rule: &Rule) {
        let Some(condition) = &rule.condition else { return };
        if condition.is_idle() {
            self.say("idle-condition", Some(rule), &rule.when_at, "");
        }
        for (function, text) in condition.parts() {
            let closed = text.is_some_and(|text| match function {
                "startsWith" => text.ends_with(['/', ':', '@']),
                _ => function == "endsWith" && text.starts_with('@'),
            });
            if !closed {
                let text = text.map_or_else(|| "…".to_owned(), |text| format!("{text:?}"));
                self.say("open-condition", Some(rule), &rule.when_at, &format!("{function}({text})"));
            }
        }
        if condition.negates() {
            self.say("negative-condition", Some(rule), &rule.when_at, "");
        }
    }

    fn shadowed(&mut self, rule: &Rule) {
        let covers = |other: &Rule| {
            other.issuer == rule.issuer
                && other.mode == rule.mode
                && other.condition.is_none()
                && other
                    .checks
                    .iter()
                    .all(|wide| effective(rule, &wide.claim).any(|narrow| is_within(&narrow.matcher, &wide.matcher)))
        };
        let equal = |other: &Rule| {
            rule.condition.is_none()
                && rule
                    .checks
                    .iter()
                    .all(|wide| effective(other, &wide.claim).any(|narrow| is_within(&narrow.matcher, &wide.matcher)))
        };
        let by = self
            .grant
            .rules
            .iter()
            .find(|other| other.name != rule.name && covers(other) && (!equal(other) || other.name < rule.name));
        if let Some(other) = by {
            self.say("shadowed-rule", Some(rule), &None, &format!("by {}", other.name));
        }
    }

    fn allows(&mut self) {
        let rules = self.grant.rules.iter().flat_map(|rule| &rule.allow);
        let all: Vec<_> = self.grant.allow.iter().chain(rules).cloned().collect();
        for allow in all {
            let id = &allow.lint.value;
            if rule(id).is_none() {
                let nearest = did_you_mean(id, RULES.iter().map(|rule| rule.id));
                let nearest = nearest.map(|id| format!(" (did you mean {id}?)")).unwrap_or_default();
                self.say("unknown-allow", None, &allow.at, &format!("{id}{nearest}"));
            } else if allow.at.as_ref().is_some_and(|at| !self.used.borrow().contains(&at.start)) {
                self.say("unused-allow", None, &allow.at, id);
            }
        }
    }
}

/// Whether a profile's stable ids say which repository, project or pipeline it is.
impl Profile {
    fn has_unit_ids(&self) -> bool {
        self.claims().any(|claim| self.is_unit_id(&claim.name))
    }

    fn is_unit_id(&self, name: &str) -> bool {
        let stable = || self.claim(name).is_some_and(|claim| claim.class == Class::Stable);
        let asked = || self.first().iter().any(|ask| ask.claim == name) && self.subject() != Some(name) && stable();
        self.tenant_claim() != Some(name) && (self.claims().any(|claim| claim.id.as_deref() == Some(name)) || asked())
    }

    /// Whether a text is one that the claim can be, where the claim is the subject.
    fn is_subject(&self, name: &str, text: &str) -> bool {
        match self.slot(name) {
            Some(Slot::Known(slot)) if self.subject() == Some(name) => !self.misshapen(slot, text),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        let ids: BTreeSet<_> = RULES.iter().map(|rule| rule.id).collect();
        assert_eq!(ids.len(), RULES.len());
    }
}
