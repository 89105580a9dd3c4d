//! Whose jobs a rule trusts.

use super::{
    GrantLinter,
    shape::{checks_of, fixed_prefix, has_gap, names_an_owner, patterns},
    trial::{admits, bounds_code, is_bound, settles},
};
use crate::{
    claims::Held,
    grant::Rule,
    issuer::{Claim, Class, Profile},
    pattern::{Matcher, Pattern},
};
use std::ops::Range;

impl GrantLinter<'_> {
    pub(super) fn whose(&mut self, rule: &Rule) {
        let profile = &rule.profile;
        if rule.is_shared && !profile.pins_tenant(|claim| rule.pins(claim)) {
            self.say("tenant-by-config-only", Some(rule), &None, "");
        }
        for demand in &profile.lint().demand {
            let met = |claim: &String| match demand.absent {
                true => settles(rule, claim) && admits(rule, claim, Held::Absent),
                false => is_bound(rule, claim),
            };
            if !demand.any_of.iter().any(met) {
                let what = format!("none of {} is matched; {}", demand.any_of.join(", "), demand.because);
                self.say("unbounded", Some(rule), &None, &what);
            }
        }
        for (check, place) in rule.checks.iter().zip(&rule.claims_at) {
            let Some(claim) = profile.claim(&check.claim) else { continue };
            let source = profile.derived_from(&check.claim).unwrap_or(&check.claim);
            if let (Class::Name, Some(id), false) = (claim.class, &claim.id, matches!(check.matcher, Matcher::Absent)) {
                self.name_without_id(rule, claim, id, place);
            } else if profile.subject() == Some(source)
                && profile.claim(source).is_some_and(|claim| !matches!(claim.class, Class::Stable | Class::Asserted))
                && profile.has_unit_ids()
                && !rule.checks.iter().any(|other| profile.is_unit_id(&other.claim))
            {
                self.say("sub-without-id", Some(rule), place, &format!("`{}`", check.claim));
            }
            let Some(owner_after) = profile.owner_after(claim) else { continue };
            // Where the subject is all that there is, each of its parts may be what keeps others out.
            let is_all = profile.subject() == Some(source) && !profile.has_unit_ids();
            let has_gap = |pattern: &Pattern| is_all && has_gap(pattern);
            for pattern in patterns(&check.matcher) {
                if !names_an_owner(&fixed_prefix(pattern), owner_after) || has_gap(pattern) {
                    self.say("wildcard-before-tenant", Some(rule), place, &format!("`{}`", check.claim));
                }
            }
        }
        if let Some(condition) = &rule.condition {
            for claim in condition.reads().filter_map(|name| profile.claim(name)) {
                let has_line = checks_of(rule, &claim.name).next().is_some();
                if let (Class::Name, Some(id), false) = (claim.class, &claim.id, has_line)
                    && is_bound(rule, &claim.name)
                {
                    self.name_without_id(rule, claim, id, &rule.when_at);
                }
            }
            for (function, claim, text) in condition.parts() {
                let claim = claim.and_then(|name| profile.claim(name)).filter(|_| function == "startsWith");
                let (Some(claim), Some(text)) = (claim, text) else { continue };
                if profile.owner_after(claim).is_some_and(|owner_after| !names_an_owner(text, owner_after))
                    && rule.checks.iter().all(|check| check.claim != claim.name)
                {
                    self.say("wildcard-before-tenant", Some(rule), &rule.when_at, &format!("`{}`", claim.name));
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

    fn name_without_id(&mut self, rule: &Rule, claim: &Claim, id: &str, at: &Option<Range<usize>>) {
        if !is_bound(rule, id) {
            self.say("mutable-name-without-id", Some(rule), at, &format!("`{}` without `{id}`", claim.name));
        }
    }
}

impl Profile {
    /// How many separators come before what an owner owns, where the claim's values have an owner.
    fn owner_after(&self, claim: &Claim) -> Option<usize> {
        let source = self.derived_from(&claim.name).unwrap_or(&claim.name);
        let is_subject = self.subject() == Some(source);
        let has_owner = claim.class == Class::Name
            && (claim.id.as_deref() == self.tenant_claim() || (claim.has_alphabet() && claim.may_hold('/')));
        let asked = is_subject || has_owner || claim.owner_after.is_some() || claim.separators.contains('@');
        asked.then(|| claim.owner_after.unwrap_or(if is_subject { 2 } else { 1 }))
    }

    /// Whether its stable ids say which repository, project or pipeline it is.
    fn has_unit_ids(&self) -> bool {
        self.claims().any(|claim| self.is_unit_id(&claim.name))
    }

    fn is_unit_id(&self, name: &str) -> bool {
        let stable = || self.claim(name).is_some_and(|claim| claim.class == Class::Stable);
        let asked = || self.first().iter().any(|ask| ask.claim == name) && self.subject() != Some(name) && stable();
        self.tenant_claim() != Some(name) && (self.claims().any(|claim| claim.id.as_deref() == Some(name)) || asked())
    }
}
