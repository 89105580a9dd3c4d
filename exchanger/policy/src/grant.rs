//! Compiled policies: grants, their rules, and the set of them that decisions are made on.
//!
//! Everything here is made by [`crate::compile`] and never changes afterwards.

use crate::{
    cases::Case,
    condition::Condition,
    document::{At, Disclose, Mode},
    guards::Guards,
    issuer::{Class, Profile, Slot},
    pattern::Matcher,
    source::{Text, did_you_mean},
};
use jobpass_protocol::{BackendName, GrantName, IssuerName, RuleName};
use std::{any::Any, collections::HashMap, fmt, ops::Range, sync::Arc};

/// Every grant of a server, at one moment. Cheap to clone.
#[derive(Clone)]
pub struct PolicySet(Arc<Inner>);

struct Inner {
    grants: HashMap<GrantName, Arc<Grant>>,
    guards: Arc<Guards>,
    digest: Arc<str>,
}

impl PolicySet {
    pub(crate) fn new(grants: HashMap<GrantName, Arc<Grant>>, guards: Guards, digest: String) -> Self {
        Self(Arc::new(Inner { grants, guards: Arc::new(guards), digest: digest.into() }))
    }

    /// The grant of this name.
    #[must_use]
    pub fn grant(&self, name: &str) -> Option<&Arc<Grant>> {
        self.0.grants.get(name)
    }

    /// Of a name that is no grant's, the grant that may be meant, in words to be put after that.
    #[must_use]
    pub fn did_you_mean(&self, name: &str) -> String {
        let nearest = did_you_mean(name, self.0.grants.keys().map(GrantName::as_str));
        nearest.map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default()
    }

    /// The set with another grant in the place of the one of its name.
    pub(crate) fn with(&self, grant: Grant) -> Self {
        let mut grants = self.0.grants.clone();
        grants.insert(grant.name.clone(), Arc::new(grant));
        Self(Arc::new(Inner { grants, guards: Arc::clone(&self.0.guards), digest: self.0.digest.clone() }))
    }

    pub(crate) fn guards(&self) -> &Guards {
        &self.0.guards
    }

    /// Every grant, in no order.
    pub fn grants(&self) -> impl Iterator<Item = &Arc<Grant>> {
        self.0.grants.values()
    }

    /// SHA-256 over the files that it was made from, in hex.
    #[must_use]
    pub fn digest(&self) -> &Arc<str> {
        &self.0.digest
    }
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicySet").field("digest", &self.digest()).field("grants", &self.0.grants.len()).finish()
    }
}

/// Something that a job may ask for by name.
pub struct Grant {
    pub(crate) name: GrantName,
    pub(crate) owner: String,
    pub(crate) description: Option<String>,
    pub(crate) review_by: Option<String>,
    pub(crate) backend: BackendName,
    pub(crate) ttl: u32,
    pub(crate) max_lifetime: u32,
    pub(crate) scopes: Vec<String>,
    pub(crate) disclose: Disclose,
    pub(crate) mode: Mode,
    pub(crate) allow: Vec<Allow>,
    /// In the order of their names, so that the order in the file cannot matter.
    pub(crate) rules: Vec<Rule>,
    pub(crate) spec: Arc<dyn Any + Send + Sync>,
    /// `credential:` on one line, to compare it with another one.
    pub(crate) credential: String,
    pub(crate) cases: Vec<Arc<Case>>,
    pub(crate) file: Text,
    /// Where its name stands.
    pub(crate) at: Option<Range<usize>>,
    /// Where its TTL stands.
    pub(crate) ttl_at: Option<Range<usize>>,
}

impl Grant {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &GrantName {
        &self.name
    }

    /// Who answers for it.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// What it is for.
    #[must_use]
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// The day by which somebody has to look at it again: `2027-06-30`.
    #[must_use]
    pub fn review_by(&self) -> Option<&str> {
        self.review_by.as_deref()
    }

    /// The backend that makes the credential.
    #[must_use]
    pub fn backend(&self) -> &BackendName {
        &self.backend
    }

    /// How long a credential lives at most, in seconds.
    #[must_use]
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// How long renewals can keep it alive, in seconds.
    #[must_use]
    pub fn max_lifetime(&self) -> u32 {
        self.max_lifetime
    }

    /// The scopes that a job may choose from; all of them, if it chooses none.
    #[must_use]
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// Who is told why a request was denied.
    #[must_use]
    pub fn disclose(&self) -> Disclose {
        self.disclose
    }

    /// Whether what it permits is issued.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Its rules, by name.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What the backend's [`crate::compile::SpecCompiler`] made of `credential:`.
    #[must_use]
    pub fn spec<T: Any>(&self) -> Option<&T> {
        self.spec.downcast_ref()
    }

    /// Its tests.
    #[must_use]
    pub fn cases(&self) -> &[Arc<Case>] {
        &self.cases
    }

    /// The file that it was read from.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.file.path
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant").field("name", &self.name).field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// One way to be entitled to a grant.
#[derive(Debug)]
pub struct Rule {
    pub(crate) name: RuleName,
    pub(crate) issuer: IssuerName,
    pub(crate) profile: Arc<Profile>,
    /// Whether strangers cannot get here: the issuer is private, or configured with tenants.
    pub(crate) callers_are_ours: bool,
    pub(crate) checks: Vec<Check>,
    pub(crate) condition: Option<Condition>,
    pub(crate) mode: Mode,
    pub(crate) allow: Vec<Allow>,
    /// Whether strangers can get tokens of its issuer.
    pub(crate) is_shared: bool,
    /// Whether its jobs can run on machines of the platform.
    pub(crate) is_hosted: bool,
    /// Where its name stands.
    pub(crate) at: Option<Range<usize>>,
    /// Where the claims of its checks stand, in their order.
    pub(crate) claims_at: Vec<Option<Range<usize>>>,
    /// Where its condition stands.
    pub(crate) when_at: Option<Range<usize>>,
}

/// A lint rule that does not count.
#[derive(Clone, Debug)]
pub(crate) struct Allow {
    pub(crate) lint: At<String>,
    pub(crate) at: Option<Range<usize>>,
}

impl Rule {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &RuleName {
        &self.name
    }

    /// The issuer whose tokens it speaks of.
    #[must_use]
    pub fn issuer(&self) -> &IssuerName {
        &self.issuer
    }

    /// What those tokens look like.
    #[must_use]
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// Whether the rule accepts only values of this claim that it lists.
    #[must_use]
    pub fn pins(&self, claim: &str) -> bool {
        self.pinned(claim).is_some()
    }

    /// The condition that must hold as well.
    #[must_use]
    pub fn condition(&self) -> Option<&Condition> {
        self.condition.as_ref()
    }

    /// Whether what it permits is issued.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Where the line of a check stands.
    pub(crate) fn place_of(&self, check: &Check) -> Option<Range<usize>> {
        let index = self.checks.iter().position(|known| known.claim == check.claim)?;
        self.claims_at.get(index).cloned().flatten()
    }

    /// The values that the rule accepts of a claim, where it lists them.
    pub(crate) fn pinned(&self, claim: &str) -> Option<Vec<String>> {
        self.checks.iter().filter(|check| &*check.claim == claim).find_map(|check| check.matcher.exact())
    }
}

/// One line of a rule's `match`.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub(crate) claim: Box<str>,
    pub(crate) slot: Slot,
    pub(crate) matcher: Matcher,
}

/// What a backend may know of a grant when it types the grant's credential spec.
pub struct GrantContext<'a> {
    pub(crate) name: &'a GrantName,
    pub(crate) ttl: u32,
    pub(crate) max_lifetime: u32,
    pub(crate) scopes: &'a [String],
    pub(crate) rules: &'a [Rule],
}

impl GrantContext<'_> {
    /// The grant's name.
    #[must_use]
    pub fn name(&self) -> &GrantName {
        self.name
    }

    /// The grant's TTL in seconds.
    #[must_use]
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// The bound on renewals in seconds.
    #[must_use]
    pub fn max_lifetime(&self) -> u32 {
        self.max_lifetime
    }

    /// The grant's scopes.
    #[must_use]
    pub fn scopes(&self) -> &[String] {
        self.scopes
    }

    /// The grant's rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        self.rules
    }

    /// Whether one workload at most is entitled: there is one rule, and it pins to one value each every id
    /// that a first grant on its issuer asks for.
    ///
    /// # Errors
    /// What lets more in, and the cure.
    pub fn one_workload(&self) -> Result<(), (String, String)> {
        let [rule] = self.rules else {
            let message = format!("{} rules entitle more than one workload", self.rules.len());
            return Err((message, "keep one rule; give every workload a secret of its own".to_owned()));
        };
        let profile = &rule.profile;
        let is_id = |claim: &str| profile.claim(claim).is_some_and(|known| known.class == Class::Stable);
        let asked = profile.first().iter().filter(|ask| !ask.optional && !ask.absent && ask.only.is_none());
        let ids: Vec<&str> = asked.map(|ask| ask.claim.as_str()).filter(|claim| is_id(claim)).collect();
        if !ids.iter().any(|id| profile.tenant_claim() != Some(id)) {
            let message = format!("tokens of {} have no id of a workload that is never reused", profile.title());
            return Err((message, "use an issuer whose tokens have one".to_owned()));
        }
        match ids.iter().find(|id| rule.pinned(id).is_none_or(|values| values.len() != 1)) {
            None => Ok(()),
            Some(id) => {
                let message = format!("rule {} entitles more than one workload: it does not pin `{id}`", rule.name);
                Err((message, format!("match one value each of {}", ids.join(", "))))
            }
        }
    }

    /// Whether a claim may decide about authority: in every rule it is an id that the platform never
    /// reuses, or pinned to listed values.
    #[must_use]
    pub fn carries_authority(&self, claim: &str) -> bool {
        self.rules
            .iter()
            .all(|rule| rule.profile.claim(claim).is_some_and(|known| known.class == Class::Stable) || rule.pins(claim))
    }
}
