//! Sets of tokens: what a rule lets in, and whether anything is in one set and not in others.

use crate::{
    condition::Condition,
    grant::{Check, Rule},
    guards::Forbid,
    issuer::Profile,
    pattern::Matcher,
    sample::{Point, Sample, Sampler},
    values::Line,
};
use jobpass_protocol::IssuerName;
use std::{collections::BTreeMap, sync::Arc};

/// How many questions a search may ask before it gives up.
const MAX_QUESTIONS: usize = 4_000;
/// How many all searches about one grant may ask together.
const MAX_ASKED: usize = 60_000;

/// All tokens of an issuer that fulfil every line and every condition.
#[derive(Clone)]
pub(crate) struct Region<'a> {
    pub(crate) issuer: &'a IssuerName,
    pub(crate) profile: &'a Arc<Profile>,
    pub(crate) lines: Vec<(&'a str, &'a Matcher)>,
    /// Conditions that are more than lines.
    pub(crate) conditions: Vec<&'a Condition>,
}

/// What came of a search.
#[derive(Debug)]
pub(crate) enum Outcome<T> {
    /// This.
    Found(T),
    /// There is certainly nothing.
    Nothing,
    /// Nothing was found, and nobody knows whether there is anything.
    Unsure,
}

impl<'a> Region<'a> {
    /// What a rule lets in.
    pub(crate) fn of(rule: &'a Rule) -> Self {
        let conjuncts = rule.condition.as_ref().and_then(Condition::conjuncts);
        let checks = rule.checks.iter().chain(conjuncts.unwrap_or_default());
        let condition = rule.condition.as_ref().filter(|_| conjuncts.is_none());
        Self::new(&rule.issuer, &rule.profile, checks, condition)
    }

    /// What a guard forbids. Its condition also denies where it has no value, which no line says; and
    /// it forbids claims of an unknown form.
    pub(crate) fn forbidden(forbid: &'a Forbid) -> Self {
        Self::new(&forbid.issuer, &forbid.profile, forbid.checks.iter(), forbid.condition.as_ref())
    }

    fn new(
        issuer: &'a IssuerName,
        profile: &'a Arc<Profile>,
        checks: impl Iterator<Item = &'a Check>,
        condition: Option<&'a Condition>,
    ) -> Self {
        let lines = checks.map(|check| (&*check.claim, &check.matcher)).collect();
        Self { issuer, profile, lines, conditions: condition.into_iter().collect() }
    }

    /// The tokens that are in both.
    pub(crate) fn and(&self, other: &Self) -> Option<Self> {
        let mut both = self.is_of_issuer(other).then(|| self.clone())?;
        both.lines.extend(&other.lines);
        both.conditions.extend(&other.conditions);
        Some(both)
    }

    /// Its lines, by claim.
    pub(crate) fn point(&self) -> Point<'a> {
        let mut point = Point::new();
        for (claim, matcher) in &self.lines {
            point.entry(*claim).or_default().push((*matcher, true));
        }
        point
    }

    /// Whether tokens of this region can be in the other at all.
    fn is_of_issuer(&self, other: &Region<'_>) -> bool {
        self.issuer == other.issuer && Arc::ptr_eq(self.profile, other.profile)
    }

    /// A token of this region that is in none of the `others`, as `accept` takes it: whatever it
    /// refuses was a candidate that a condition or a claim's form made useless.
    pub(crate) fn find_outside<T>(
        &self,
        others: &[Region<'_>],
        sampler: &mut Sampler,
        accept: &mut dyn FnMut(Sample) -> Option<T>,
    ) -> Outcome<T> {
        let others: Vec<&Region<'_>> = others.iter().filter(|other| self.is_of_issuer(other)).collect();
        // The usual case first, for which nothing has to be taken apart.
        if others.len() > 1 && others.iter().any(|other| self.is_within(other, sampler)) {
            return Outcome::Nothing;
        }
        let mut search = Search { sampler, accept, unsure: false, questions: 0 };
        let mut point = self.point();
        for (claim, lines) in &point {
            match search.leaves_any(claim, lines) {
                Some(true) => {}
                Some(false) => return Outcome::Nothing,
                None => search.unsure = true,
            }
        }
        let mut conditions = self.conditions.iter().map(|condition| (condition.source(), true)).collect();
        match search.step(&mut point, &mut conditions, &others) {
            Some(found) => Outcome::Found(found),
            None if search.unsure => Outcome::Unsure,
            None => Outcome::Nothing,
        }
    }

    /// Whether every token of this region is in the other. `false` also where nobody knows.
    pub(crate) fn is_within(&self, other: &Region<'_>, sampler: &mut Sampler) -> bool {
        self.is_of_issuer(other)
            && matches!(self.find_outside(std::slice::from_ref(other), sampler, &mut |_| Some(())), Outcome::Nothing)
    }
}

/// Narrows a set of tokens down, region by region, until a token outside of all of them is left.
struct Search<'s, T> {
    sampler: &'s mut Sampler,
    accept: &'s mut dyn FnMut(Sample) -> Option<T>,
    /// Whether anything on the way could not be answered.
    unsure: bool,
    questions: usize,
}

impl<T> Search<'_, T> {
    fn leaves_any(&mut self, claim: &str, lines: &[Line<'_>]) -> Option<bool> {
        self.questions += 1;
        self.sampler.leaves_any(claim, lines)
    }

    fn step<'p>(
        &mut self,
        point: &mut Point<'p>,
        conditions: &mut BTreeMap<&'p str, bool>,
        others: &[&'p Region<'p>],
    ) -> Option<T> {
        if self.questions > MAX_QUESTIONS || self.sampler.asked() > MAX_ASKED {
            self.unsure = true;
            return None;
        }
        let Some((other, others)) = others.split_first() else {
            let found = self.sampler.sample(point).and_then(|sample| (self.accept)(sample));
            self.unsure |= found.is_none();
            return found;
        };
        let outside_already = other.conditions.iter().any(|c| conditions.get(c.source()) == Some(&false))
            || other.lines.iter().any(|(claim, matcher)| {
                let mut lines = point.get(claim).cloned().unwrap_or_default();
                lines.push((matcher, true));
                self.leaves_any(claim, &lines) == Some(false)
            });
        if outside_already {
            return self.step(point, conditions, others);
        }
        // Outside of it is where one of its lines or conditions fails.
        for (claim, matcher) in &other.lines {
            let lines = point.entry(claim).or_default();
            lines.push((matcher, false));
            let lines = lines.clone();
            let found = match self.leaves_any(claim, &lines) {
                Some(false) => None,
                Some(true) | None => self.step(point, conditions, others),
            };
            if found.is_some() {
                return found;
            }
            point.entry(claim).or_default().pop();
            point.retain(|_, lines| !lines.is_empty());
        }
        for condition in other.conditions.iter().map(|condition| condition.source()) {
            if !conditions.contains_key(condition) {
                conditions.insert(condition, false);
                let found = self.step(point, conditions, others);
                if found.is_some() {
                    return found;
                }
                conditions.remove(condition);
            }
        }
        None
    }
}
