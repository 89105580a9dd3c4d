//! Rules changed so that they permit more, to see whether the tests of a grant notice.

use crate::{
    condition::Condition,
    grant::{Check, Grant, Rule},
    pattern::{Glob, Matcher, Pattern},
};
use std::sync::Arc;

impl Rule {
    /// The rule, changed in each way that makes it permit more, with the change in words.
    pub(crate) fn mutants(&self) -> Vec<(String, Self)> {
        let mut mutants = Vec::new();
        for (index, check) in self.checks.iter().enumerate() {
            let mut without = self.again();
            without.checks.remove(index);
            mutants.push((format!("without `{}`", check.claim), without));
            if let Some((glob, matcher)) = self.widened(check) {
                let mut wider = self.again();
                if let Some(check) = wider.checks.get_mut(index) {
                    check.matcher = matcher;
                }
                mutants.push((format!("with `{}` widened to {glob}", check.claim), wider));
            }
        }
        if self.condition.is_some() {
            mutants.push(("without `when`".to_owned(), Self { condition: None, ..self.again() }));
        }
        mutants
    }

    /// The first value with its last segment left open: `refs/heads/*`.
    fn widened(&self, check: &Check) -> Option<(String, Matcher)> {
        let Matcher::Text { exact, patterns } = &check.matcher else { return None };
        let (head, _) = exact.first()?.rsplit_once('/')?;
        let glob = Glob::parse(&format!("{head}/*"), self.profile.claim(&check.claim)?).ok()?;
        let mut patterns = patterns.clone();
        let text = glob.text().to_owned();
        patterns.push(Pattern::Glob(glob));
        Some((text, Matcher::Text { exact: exact.clone(), patterns }))
    }

    fn again(&self) -> Self {
        Self {
            name: self.name.clone(),
            issuer: self.issuer.clone(),
            profile: Arc::clone(&self.profile),
            callers_are_ours: self.callers_are_ours,
            checks: self.checks.clone(),
            // A program is not cloned, but what compiled once compiles again.
            condition: self.condition.as_ref().and_then(|c| Condition::compile(c.source(), &self.profile).ok()),
            mode: self.mode,
            allow: self.allow.clone(),
            is_shared: self.is_shared,
            is_hosted: self.is_hosted,
            at: self.at.clone(),
            claims_at: self.claims_at.clone(),
            when_at: self.when_at.clone(),
        }
    }
}

impl Grant {
    /// The grant with another rule in the place of one; without its cases.
    pub(crate) fn with_rule(&self, index: usize, rule: Rule) -> Self {
        let mut rules: Vec<_> = self.rules.iter().map(Rule::again).collect();
        if let Some(place) = rules.get_mut(index) {
            *place = rule;
        }
        Self {
            name: self.name.clone(),
            owner: self.owner.clone(),
            description: self.description.clone(),
            review_by: self.review_by.clone(),
            backend: self.backend.clone(),
            ttl: self.ttl,
            max_lifetime: self.max_lifetime,
            scopes: self.scopes.clone(),
            disclose: self.disclose,
            mode: self.mode,
            allow: self.allow.clone(),
            rules,
            spec: Arc::clone(&self.spec),
            credential: self.credential.clone(),
            cases: Vec::new(),
            file: self.file.clone(),
            at: self.at.clone(),
            ttl_at: self.ttl_at.clone(),
        }
    }
}
