//! What a grant's file shows to be unwise, though it compiles: one rule per known way to trust more
//! than was meant.
//!
//! Nothing here decides anything. The rules know no CI by name; what they know of one is in its
//! profile. A finding is silenced where it does not count, in the file, with a reason:
//! `allow: [{ lint: ID, reason: … }]` on the grant or the rule.

mod code;
mod rules;
mod shape;
mod trial;
mod values;
mod whose;

pub use rules::{LintRule, RULES, rule};

use crate::{
    compile::Compiled,
    document::Disclose,
    grant::{Grant, Rule},
    guards::is_overdue,
    source::{Diagnostic, Severity, did_you_mean},
};
use shape::{effective, is_placeholder, is_within};
use std::{cell::RefCell, collections::BTreeSet, ops::Range};

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

/// What linting finds of severity error: the server takes no policies that have it. It is little of what
/// [`lint`] looks at, and quick.
#[must_use]
pub fn errors(compiled: &Compiled) -> Vec<Diagnostic> {
    compiled.set.grants().flat_map(|grant| GrantLinter::new(grant).errors().found).collect()
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
        self = self.errors();
        self.grant_itself(at);
        for rule in &self.grant.rules {
            self.whose(rule);
            self.which_code(rule);
            self.where_it_runs(rule);
            for (check, place) in rule.checks.iter().zip(&rule.claims_at) {
                self.matcher(rule, check, place);
            }
            self.weak(rule);
            self.catch_all(rule);
            self.condition(rule);
            self.shadowed(rule);
        }
        self.apart();
        self.allows();
        self.found
    }

    /// Every rule of severity error, and no other.
    fn errors(mut self) -> Self {
        if is_placeholder(self.grant.owner()) {
            self.say("placeholder", None, &None, "`owner`");
        }
        for rule in &self.grant.rules {
            self.never(rule);
            self.placeholders(rule);
        }
        self
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
        let or = if lint.severity == Severity::Error { ", or `allow:` it with a reason" } else { "" };
        let help = format!("{}{or}; docs/lint.md#{id}", lint.fix);
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
        if grant.disclose == Disclose::Full && grant.rules.iter().any(|rule| rule.is_shared) {
            self.say("disclose-full", None, &None, "");
        }
        if grant.cases.is_empty() {
            self.say("no-tests", None, &None, "");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        let ids: BTreeSet<_> = RULES.iter().map(|rule| rule.id).collect();
        assert_eq!(ids.len(), RULES.len());
    }
}
