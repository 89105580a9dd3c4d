//! What single lines and conditions amount to.

use super::{
    GrantLinter,
    shape::{
        RegexShape, begins_open, checks_of, ends_inside_a_name, is_exact, is_placeholder, matches_any_ref,
        matches_anything, patterns, texts,
    },
    trial::{admits_text, is_bound, place, says, seen, settles},
};
use crate::{
    grant::{Check, Rule},
    issuer::{Class, Profile, Slot},
    pattern::{Matcher, Pattern},
    source::did_you_mean,
};
use regex::Regex;
use std::{collections::BTreeSet, ops::Range, sync::Arc};

impl GrantLinter<'_> {
    pub(super) fn placeholders(&mut self, rule: &Rule) {
        for (check, at) in rule.checks.iter().zip(&rule.claims_at) {
            for value in texts(&check.matcher).iter().filter(|value| is_placeholder(value)) {
                self.say("placeholder", Some(rule), at, &format!("`{}` {value}", check.claim));
            }
        }
    }

    pub(super) fn matcher(&mut self, rule: &Rule, check: &Check, at: &Option<Range<usize>>) {
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
                // Said by `placeholders`.
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
            let all = texts(&check.matcher);
            let only = |prefix: &str| {
                !all.is_empty()
                    && all.iter().all(|text| text.starts_with(prefix))
                    && patterns(&check.matcher).is_empty()
            };
            for (prefix, kind) in [("refs/heads/", "branch"), ("refs/tags/", "tag")] {
                let excluded = |by: &String| says(rule, by) && !admits_text(rule, by, kind);
                if only(prefix) && refs.by.as_ref().is_some_and(excluded) {
                    self.say("contradiction", Some(rule), at, &format!("{name} is a {kind}"));
                }
            }
        }
        let all = texts(&check.matcher);
        let is_code = facts.code.iter().any(|code| **code == *check.claim);
        if facts.run.iter().any(|run| **run == *check.claim)
            && (!all.is_empty() || matches!(check.matcher, Matcher::Int(_)))
        {
            self.say("one-run-only", Some(rule), at, &name);
        }
        let seen = seen(&profile, &check.claim);
        for pattern in patterns(&check.matcher) {
            if matches_anything(pattern, claim, &seen) {
                self.say("matches-anything", Some(rule), at, &format!("{name} {pattern}"));
            }
            let environment = facts.environment.as_ref().is_some_and(|claim| is_bound(rule, claim));
            if is_code && !environment && matches_any_ref(pattern) {
                self.say("any-ref", Some(rule), at, &name);
            } else if ends_inside_a_name(pattern) || (is_code && begins_open(pattern)) {
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
                    ("regex-case-insensitive", shape.case_insensitive),
                ] {
                    if is_so {
                        self.say(id, Some(rule), at, &format!("{name} {pattern}"));
                    }
                }
            }
        }
    }

    /// Claims that show little, whatever they are.
    pub(super) fn weak(&mut self, rule: &Rule) {
        let profile = Arc::clone(&rule.profile);
        let facts = profile.lint();
        let reads = rule.condition.iter().flat_map(|condition| condition.reads()).filter(|claim| settles(rule, claim));
        let said: BTreeSet<_> = rule.checks.iter().map(|check| &*check.claim).chain(reads).collect();
        for claim in said {
            let known = profile.claims().any(|known| *known.name == *claim);
            let is_weak = |weak: &str| match weak.strip_suffix('*') {
                Some("") => !known,
                Some(start) => claim.starts_with(start),
                None => weak == claim,
            };
            if let Some((_, why)) = facts.weak.iter().find(|(weak, _)| is_weak(weak)) {
                self.say("weak-claim", Some(rule), &place(rule, claim), &format!("`{claim}`: {why}"));
            }
            if facts.free_text.iter().any(|free| free == claim) {
                self.say("free-text-claim", Some(rule), &place(rule, claim), &format!("`{claim}`"));
            }
        }
    }

    /// Values that nobody chose.
    pub(super) fn catch_all(&mut self, rule: &Rule) {
        let profile = Arc::clone(&rule.profile);
        for (claim, form) in &profile.lint().catch_all {
            let Ok(form) = Regex::new(&format!(r"\A(?:{form})\z")) else { continue };
            let lines = checks_of(rule, claim).flat_map(|check| texts(&check.matcher));
            let asked = rule.condition.iter().filter(|condition| condition.reads().any(|read| read == claim));
            // What a value ends with, behind a number that is somebody's.
            let asked = asked
                .flat_map(|condition| condition.texts())
                .flat_map(|text| [text.to_owned(), format!("1-compute{text}")]);
            let seen = seen(&profile, claim).into_iter().filter(|_| says(rule, claim));
            let found =
                lines.chain(asked).chain(seen).find(|text| form.is_match(text) && admits_text(rule, claim, text));
            if let Some(value) = found {
                self.say("catch-all-value", Some(rule), &place(rule, claim), &format!("`{claim}` {value}"));
            }
        }
    }

    pub(super) fn condition(&mut self, rule: &Rule) {
        let Some(condition) = &rule.condition else { return };
        if condition.is_idle() {
            self.say("idle-condition", Some(rule), &rule.when_at, "");
        }
        for (function, _, text) in condition.parts() {
            let closed = text.is_some_and(|text| match function {
                "startsWith" => text.ends_with(['/', ':', '@']),
                _ => function == "endsWith" && text.starts_with('@'),
            });
            if !closed {
                let text = text.map_or_else(|| "…".to_owned(), |text| format!("{text:?}"));
                self.say("open-condition", Some(rule), &rule.when_at, &format!("{function}({text})"));
            }
        }
        let lines = |claim: &str| checks_of(rule, claim).next().is_some();
        for claim in condition.reads().filter(|claim| !lines(claim) && settles(rule, claim)) {
            if admits_text(rule, claim, "") && condition.texts().contains(&"") {
                self.say("empty-value", Some(rule), &rule.when_at, &format!("`{claim}`"));
            }
        }
        if condition.negates() {
            self.say("negative-condition", Some(rule), &rule.when_at, "");
        }
    }
}

impl Profile {
    /// Whether a text is one that the claim can be, where the claim is the subject.
    fn is_subject(&self, name: &str, text: &str) -> bool {
        match self.slot(name) {
            Some(Slot::Known(slot)) if self.subject() == Some(name) => !self.misshapen(slot, text),
            _ => false,
        }
    }
}
