//! Which code a rule trusts, and where it runs.

use super::{
    GrantLinter,
    shape::{checks_of, fixed_prefix, patterns, texts},
    trial::{admits, admits_text, bounds_code, is_bound, permits_reviews, place, reviews, says, settles, tells_apart},
};
use crate::{claims::Held, grant::Rule, pattern::Pattern};
use std::{collections::BTreeSet, sync::Arc};

impl GrantLinter<'_> {
    /// What no job may be given anything for. An event that is only excluded is not named.
    pub(super) fn never(&mut self, rule: &Rule) {
        let profile = Arc::clone(&rule.profile);
        let facts = profile.lint();
        let is_open = facts
            .event
            .as_ref()
            .is_some_and(|event| checks_of(rule, event).next().is_none() && admits_text(rule, event, "qzxkw"));
        let written: Vec<_> = rule.condition.iter().flat_map(|condition| condition.texts()).collect();
        let mut dangerous = facts.events_dangerous.clone();
        dangerous.retain(|kind| !is_open || written.contains(&kind.as_str()));
        self.event(rule, "dangerous-event", &dangerous);
        for (claim, values) in &facts.refuse {
            let refused = values.iter().find(|value| says(rule, claim) && admits_text(rule, claim, value));
            if let Some(value) = refused {
                self.say("refused-value", Some(rule), &place(rule, claim), &format!("`{claim}` {value}"));
            }
        }
    }

    fn event(&mut self, rule: &Rule, id: &'static str, kinds: &[String]) {
        let profile = Arc::clone(&rule.profile);
        if let Some(event) = profile.lint().event.as_ref().filter(|event| says(rule, event))
            && let Some(kind) = kinds.iter().find(|kind| admits_text(rule, event, kind))
        {
            self.say(id, Some(rule), &place(rule, event), kind);
        }
    }

    pub(super) fn which_code(&mut self, rule: &Rule) {
        let profile = Arc::clone(&rule.profile);
        let facts = profile.lint();
        if !facts.code.is_empty() && !facts.code.iter().any(|claim| bounds_code(rule, claim)) {
            self.say("no-ref-or-environment", Some(rule), &None, "");
        }
        if let Some(event) = &facts.event {
            let is_named = is_bound(rule, event) || is_bound(rule, &format!("sub_{event}"));
            if checks_of(rule, event).next().is_none() && !is_named {
                self.say("event-not-named", Some(rule), &None, &format!("`{event}` is not matched"));
            }
            self.event(rule, "review-event", &facts.events_review);
        }
        for (claim, values) in facts.review_values.iter().filter(|(claim, _)| says(rule, claim)) {
            if let Some(value) = values.iter().find(|value| admits_text(rule, claim, value)) {
                self.say("review-event", Some(rule), &place(rule, claim), &format!("`{claim}` {value}"));
            }
        }
        for claim in facts.review_only.iter().filter(|claim| says(rule, claim)) {
            if !admits(rule, claim, Held::Absent) && !admits_text(rule, claim, "") {
                self.say("pull-request-claim", Some(rule), &place(rule, claim), &format!("`{claim}`"));
            }
        }
        for claim in facts.code.iter().filter(|claim| says(rule, claim)) {
            let is_anybodys = checks_of(rule, claim).next().is_none() && admits_text(rule, claim, "refs/heads/qzxkw");
            if !is_anybodys && permits_reviews(rule, claim) {
                self.say("pull-request-ref", Some(rule), &place(rule, claim), &format!("`{claim}`"));
            }
        }
        let subject = profile.subject().unwrap_or("sub");
        if let Some(text) = facts.review_subject.as_ref().and_then(|end| reviews(rule, subject, end)) {
            self.say("review-event", Some(rule), &place(rule, subject), &format!("`{subject}` {text}"));
        }
        if let Some(fork) = &facts.fork {
            let reviews = match &facts.event {
                Some(event) => {
                    !is_bound(rule, event) || facts.events_review.iter().any(|kind| admits_text(rule, event, kind))
                }
                None => true,
            };
            if reviews && !is_bound(rule, &fork.claim) {
                self.say("fork-merge-request", Some(rule), &None, "");
            }
        }
        if let Some(reusable) = facts.reusable.as_ref().filter(|reusable| says(rule, &reusable.claim)) {
            let place = place(rule, &reusable.claim);
            let moves = |pattern: &Pattern| match pattern.text().rsplit_once('@') {
                Some((_, at)) => at.contains('*') || at.contains(".+"),
                None => true,
            };
            let mut lines = checks_of(rule, &reusable.claim).flat_map(|check| patterns(&check.matcher));
            let open = lines.any(moves) || !bounds_code(rule, &reusable.claim);
            if open && !is_bound(rule, &reusable.sha) {
                self.say("reusable-workflow-unpinned", Some(rule), &place, "");
            }
            if !reusable.caller.iter().any(|claim| is_bound(rule, claim)) {
                self.say("reusable-workflow-without-caller", Some(rule), &place, "");
            }
        }
        if let Some(refs) = &facts.ref_type {
            for claim in refs.claims.iter().filter(|claim| says(rule, claim)) {
                let says = |text: &str| refs.unless_prefixed.iter().any(|prefix| text.starts_with(prefix.as_str()));
                let lines = || checks_of(rule, claim);
                let written = lines().flat_map(|check| texts(&check.matcher)).collect::<Vec<_>>();
                let opened = lines().flat_map(|check| patterns(&check.matcher)).map(fixed_prefix).collect::<Vec<_>>();
                let asked = rule.condition.iter().flat_map(|condition| condition.texts());
                let asked = asked.filter(|text| lines().next().is_none() && admits_text(rule, claim, text));
                let mut all = written.iter().chain(&opened).map(String::as_str).chain(asked).peekable();
                if all.peek().is_none() || all.all(says) {
                    continue;
                }
                let place = place(rule, claim);
                match &refs.by {
                    Some(by) if settles(rule, by) => {}
                    Some(by) => self.say("ref-without-type", Some(rule), &place, &format!("`{claim}` without `{by}`")),
                    None => self.say("ref-type-unknown", Some(rule), &place, &format!("`{claim}`")),
                }
            }
        }
    }

    pub(super) fn where_it_runs(&mut self, rule: &Rule) {
        let profile = Arc::clone(&rule.profile);
        let facts = profile.lint();
        let is_production = |text: &str| text.to_lowercase().contains("prod");
        let environment = facts.environment.iter().flat_map(|claim| checks_of(rule, claim)).next();
        let production = is_production(self.grant.name.as_str())
            || environment.is_some_and(|check| texts(&check.matcher).iter().any(|text| is_production(text)));
        let production = production && rule.is_hosted;
        if let (Some(runner), Some(hosted), true) = (&facts.runner, &facts.runner_hosted, production) {
            if !says(rule, runner) {
                self.say("runner-not-named", Some(rule), &None, &format!("`{runner}`"));
            } else if admits_text(rule, runner, "self-hosted") || !admits_text(rule, runner, hosted) {
                self.say("self-hosted-production", Some(rule), &place(rule, runner), "");
            }
        }
        if let (Some(check), Some(protected)) = (environment, &facts.environment_protected)
            && admits_text(rule, protected, "false")
        {
            self.say("environment-unprotected", Some(rule), &rule.place_of(check), &format!("`{protected}`"));
        }
        for claim in profile.claims().filter(|claim| claim.name.ends_with("_protected")) {
            if says(rule, &claim.name) && admits_text(rule, &claim.name, "false") {
                let at = place(rule, &claim.name);
                self.say("asks-for-unprotected", Some(rule), &at, &format!("`{}`", claim.name));
            }
        }
    }

    /// What is worth different credentials, and gets this one.
    pub(super) fn apart(&mut self) {
        let grant = self.grant;
        let mut told = BTreeSet::new();
        for first in &grant.rules {
            for group in &first.profile.lint().apart {
                let of = |rule: &Rule| {
                    let from = |claim: &str| rule.profile.derived_from(claim).is_some_and(|from| says(rule, from));
                    let said =
                        || group.claims.iter().filter(|claim| says(rule, claim) || from(claim)).collect::<Vec<_>>();
                    let gets = |value: &&String| said().iter().all(|claim| tells_apart(rule, claim, value));
                    if said().is_empty() { Vec::new() } else { group.values.iter().filter(gets).collect() }
                };
                let rules = grant.rules.iter().filter(|rule| rule.issuer == first.issuer);
                let gotten: BTreeSet<_> = rules.flat_map(of).collect();
                let source = |claim: &String| first.profile.derived_from(claim).unwrap_or(claim).to_owned();
                let at =
                    group.claims.iter().map(source).find(|claim| says(first, claim)).map(|claim| place(first, &claim));
                if let (true, Some(at), true) = (gotten.len() > 1, at, told.insert(first.issuer.clone())) {
                    self.say("phases-together", Some(first), &at, &group.values.join(", "));
                }
            }
        }
    }
}
