//! The only authorisation there is: policies, claims, a request and a moment in, a decision out.
//!
//! Pure, so that the server, its renewals, `explain` and policy tests cannot come to different
//! answers. A [`Permit`] can be made nowhere else. Whatever cannot be evaluated denies.

use crate::{
    claims::{Claims, Held},
    condition::ConditionTrace,
    document::{Disclose, Mode},
    grant::{Check, Grant, PolicySet, Rule},
    guards::{Guards, is_overdue},
};
use jobpass_protocol::{GrantName, IssuerName, RuleName};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What a job asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The grant's name, as asked.
    pub grant: &'a str,
    /// The configured issuer that the token was verified against.
    pub issuer: &'a IssuerName,
    /// What the verified token says.
    pub claims: &'a Arc<Claims>,
    /// The scopes asked for; `None` asks for all that the grant has.
    pub scope: Option<&'a [String]>,
    /// The seconds asked for; `None` asks for all that the grant has.
    pub ttl: Option<u32>,
    /// Now, in epoch seconds.
    pub at: i64,
    /// What is frozen now.
    pub freezes: &'a Freezes,
}

/// What operators froze, each with the reason that they gave. A freeze beats any policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freezes {
    /// Everything is frozen.
    pub all: Option<String>,
    /// These issuers are.
    pub issuers: BTreeMap<IssuerName, String>,
    /// These grants are.
    pub grants: BTreeMap<GrantName, String>,
}

impl Freezes {
    /// Nothing is frozen.
    pub const NONE: Self = Self { all: None, issuers: BTreeMap::new(), grants: BTreeMap::new() };

    /// Why this grant is frozen for this issuer, if it is.
    #[must_use]
    pub fn reason(&self, issuer: &IssuerName, grant: &GrantName) -> Option<&str> {
        let by_name = || self.issuers.get(issuer).or_else(|| self.grants.get(grant));
        self.all.as_ref().or_else(by_name).map(String::as_str)
    }
}

/// The policy's answer.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Yes.
    Permit(Permit),
    /// No.
    Denial(Denial),
}

/// The policy's yes.
///
/// INVARIANT: made by [`decide`] only.
#[derive(Clone, Debug)]
pub struct Permit {
    grant: Arc<Grant>,
    rule: RuleName,
    issuer: IssuerName,
    claims: Arc<Claims>,
    scope: Option<Vec<String>>,
    ttl: u32,
    max_lifetime: u32,
}

impl Permit {
    /// What is granted.
    #[must_use]
    pub fn grant(&self) -> &Arc<Grant> {
        &self.grant
    }

    /// The rule that gives it.
    #[must_use]
    pub fn rule(&self) -> &RuleName {
        &self.rule
    }

    /// The issuer of the token.
    #[must_use]
    pub fn issuer(&self) -> &IssuerName {
        &self.issuer
    }

    /// What the token says.
    #[must_use]
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    /// The scopes: those asked for, or all of the grant's.
    #[must_use]
    pub fn scope(&self) -> &[String] {
        self.scope.as_deref().unwrap_or_else(|| self.grant.scopes())
    }

    /// How long the credential may live, in seconds.
    #[must_use]
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// How long renewals may keep it alive, in seconds from the first lease.
    #[must_use]
    pub fn max_lifetime(&self) -> u32 {
        self.max_lifetime
    }
}

/// The policy's no, with what it takes to understand it.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Why.
    pub kind: DenialKind,
    asked: String,
    issuer: IssuerName,
    claims: Arc<Claims>,
    /// `None`: no grant has that name.
    grant: Option<Arc<Grant>>,
}

/// Why a request was denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DenialKind {
    /// No grant has that name.
    UnknownGrant,
    /// An operator froze it.
    Frozen {
        /// The operator's reason.
        reason: String,
    },
    /// No rule of the grant matches.
    NoRule,
    /// A guard denies.
    Guard {
        /// The guard's name, or what it is about.
        name: String,
    },
    /// It would be permitted, were the grant or the rule not in `mode: shadow`.
    Shadow {
        /// The rule.
        rule: RuleName,
    },
    /// A rule matches, but the grant does not have these scopes.
    Scope {
        /// Those asked for that it does not have. The caller's own words, which no log holds.
        #[serde(skip)]
        beyond: Vec<String>,
    },
}

impl Denial {
    /// What each rule wanted and what the token said. Made when it is asked for: it costs more than the decision.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let trace = match &self.grant {
            None => Trace { grant: self.asked.clone(), because: None, rules: Vec::new() },
            Some(grant) => trace_of(grant, &self.issuer, &self.claims),
        };
        Trace { because: Some(self.kind.clone()), ..trace }
    }

    /// What the caller may be told, line by line; nothing, where the grant says so or where no rule
    /// speaks of the caller's own tenant. Beyond the scope only after a permit, so always told.
    #[must_use]
    pub fn disclosed(&self) -> Vec<String> {
        let Some(grant) = &self.grant else { return Vec::new() };
        if let DenialKind::Scope { beyond } = &self.kind {
            return vec![format!("the grant has no scope {}", beyond.join(", "))];
        }
        let own = own_rules(grant, &self.issuer, &self.claims);
        let discloses = match grant.disclose {
            Disclose::None => false,
            Disclose::Tenant => !own.is_empty(),
            Disclose::Full => true,
        };
        match &self.kind {
            _ if !discloses => Vec::new(),
            DenialKind::UnknownGrant | DenialKind::Scope { .. } => Vec::new(),
            // The reason is for the operators.
            DenialKind::Frozen { .. } => vec!["an admin has frozen it".to_owned()],
            DenialKind::NoRule => {
                let told = |rule: &&RuleTrace| grant.disclose == Disclose::Full || own.contains(&rule.rule);
                self.trace().rules.iter().filter(told).map(RuleTrace::summary).collect()
            }
            DenialKind::Guard { name } => vec![format!("a guard denies: {name}")],
            DenialKind::Shadow { rule } => {
                vec![format!("rule {rule} would permit it, but it is only tried out (mode: shadow)")]
            }
        }
    }
}

/// What each rule of a grant wanted and what the token said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The grant, as asked.
    pub grant: String,
    /// Why it was denied, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<DenialKind>,
    /// Its rules, by name; none, if there is no such grant.
    pub rules: Vec<RuleTrace>,
}

/// What one rule wanted and what the token said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleTrace {
    /// The rule.
    pub rule: RuleName,
    /// The issuer that it speaks of.
    pub issuer: IssuerName,
    /// Whether the token is of that issuer. If not, nothing else was looked at.
    pub issuer_matches: bool,
    /// Line by line.
    pub checks: Vec<CheckTrace>,
    /// The condition, if it has one.
    pub condition: Option<ConditionTrace>,
}

impl RuleTrace {
    /// Whether the rule matches.
    #[must_use]
    pub fn matches(&self) -> bool {
        self.issuer_matches
            && self.checks.iter().all(|check| check.matches)
            && self.condition.as_ref().is_none_or(|condition| condition.holds)
    }

    /// The lines that fail.
    pub fn failed(&self) -> impl Iterator<Item = &CheckTrace> {
        self.checks.iter().filter(|check| !check.matches)
    }

    /// The rule in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        if !self.issuer_matches {
            return format!("rule {}: is for tokens of {}", self.rule, self.issuer);
        }
        let condition = self.condition.iter().filter(|condition| !condition.holds).map(ConditionTrace::summary);
        let failed: Vec<_> = self.failed().map(CheckTrace::summary).chain(condition).collect();
        match failed.is_empty() {
            true => format!("rule {}: matches", self.rule),
            false => format!("rule {}: {}", self.rule, failed.join("; ")),
        }
    }
}

/// What one line of a rule wanted and what the token said.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CheckTrace {
    /// The claim.
    pub claim: String,
    /// What it had to be, in words.
    pub wanted: String,
    /// What it is; `None` where it is not there.
    pub got: Option<String>,
    /// Whether the audit log may hold what it is. Serialized, the value is left out if not.
    #[serde(skip, default = "known")]
    pub recorded: bool,
    /// Whether it matches.
    pub matches: bool,
}

impl CheckTrace {
    /// The line in words.
    #[must_use]
    pub fn summary(&self) -> String {
        let got = self.got.as_deref().unwrap_or("absent");
        format!("`{}` is {got}, wanted {}", self.claim, self.wanted)
    }
}

/// What was stored may be said.
fn known() -> bool {
    true
}

impl Serialize for CheckTrace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("CheckTrace", 4)?;
        out.serialize_field("claim", &self.claim)?;
        out.serialize_field("wanted", &self.wanted)?;
        match &self.got {
            Some(_) if !self.recorded => out.serialize_field("got", "(not recorded)")?,
            got => out.serialize_field("got", got)?,
        }
        out.serialize_field("matches", &self.matches)?;
        out.end()
    }
}

/// Decides.
#[must_use]
pub fn decide(policies: &PolicySet, request: &Request<'_>) -> Decision {
    let grant = policies.grant(request.grant);
    let decided = grant.ok_or(DenialKind::UnknownGrant).and_then(|grant| permit(policies, grant, request));
    match decided {
        Ok(permit) => Decision::Permit(permit),
        Err(kind) => Decision::Denial(Denial {
            kind,
            asked: request.grant.to_owned(),
            issuer: request.issuer.clone(),
            claims: Arc::clone(request.claims),
            grant: grant.cloned(),
        }),
    }
}

fn permit(policies: &PolicySet, grant: &Arc<Grant>, request: &Request<'_>) -> Result<Permit, DenialKind> {
    if let Some(reason) = request.freezes.reason(request.issuer, &grant.name) {
        return Err(DenialKind::Frozen { reason: reason.to_owned() });
    }
    let is_issued = |rule: &&Rule| grant.mode == Mode::Enforce && rule.mode == Mode::Enforce;
    let mut matching = grant.rules.iter().filter(|rule| rule_matches(rule, request));
    let first = matching.next().ok_or(DenialKind::NoRule)?;
    guard(policies.guards(), grant, request)?;
    let rule = std::iter::once(first).chain(matching).find(is_issued);
    let rule = rule.ok_or_else(|| DenialKind::Shadow { rule: first.name.clone() })?;
    if let Some(asked) = request.scope {
        let beyond: Vec<_> = asked.iter().filter(|scope| !grant.scopes.contains(scope)).cloned().collect();
        if !beyond.is_empty() {
            return Err(DenialKind::Scope { beyond });
        }
    }
    Ok(Permit {
        grant: Arc::clone(grant),
        rule: rule.name.clone(),
        issuer: request.issuer.clone(),
        claims: Arc::clone(request.claims),
        scope: request.scope.map(<[String]>::to_vec),
        ttl: request.ttl.map_or(grant.ttl, |asked| asked.clamp(1, grant.ttl)),
        max_lifetime: grant.max_lifetime,
    })
}

fn guard(guards: &Guards, grant: &Grant, request: &Request<'_>) -> Result<(), DenialKind> {
    let forbid = guards.forbid.iter().find(|forbid| forbid.denies(grant, request.issuer, request.claims));
    let closed = guards.closed.iter().find(|closed| closed.denies(grant, request.at));
    let overdue = grant.review_by.as_ref().filter(|day| guards.deny_overdue && is_overdue(day, request.at));
    let name = (forbid.map(|forbid| forbid.name.to_string()))
        .or_else(|| closed.map(|closed| closed.name.to_string()))
        .or_else(|| overdue.map(|day| format!("the grant was to be reviewed by {day}")));
    name.map_or(Ok(()), |name| Err(DenialKind::Guard { name }))
}

/// Whether the token is of the rule's issuer, and was read by the same profile: the places of the
/// claims that the rule looks at are the profile's.
fn is_of_issuer(rule: &Rule, issuer: &IssuerName, claims: &Claims) -> bool {
    Arc::ptr_eq(&rule.profile, claims.profile()) && rule.issuer == *issuer
}

fn rule_matches(rule: &Rule, request: &Request<'_>) -> bool {
    is_of_issuer(rule, request.issuer, request.claims)
        && rule.checks.iter().all(|check| check_matches(check, request.claims))
        && rule.condition.as_ref().is_none_or(|condition| condition.evaluate(request.claims) == Ok(true))
}

fn check_matches(check: &Check, claims: &Claims) -> bool {
    check.matcher.is_match(claims.held(&check.slot))
}

/// The rules that speak of the caller's own tenant.
fn own_rules(grant: &Grant, issuer: &IssuerName, claims: &Claims) -> BTreeSet<RuleName> {
    let is_own = |rule: &&Rule| {
        is_of_issuer(rule, issuer, claims)
            && (rule.callers_are_ours
                || rule.profile.tenant_claim().is_some_and(|tenant| {
                    let mut pins = rule.checks.iter().filter(|check| &*check.claim == tenant).peekable();
                    pins.peek().is_some() && pins.all(|pin| check_matches(pin, claims))
                }))
    };
    grant.rules.iter().filter(is_own).map(|rule| rule.name.clone()).collect()
}

/// What each rule of a grant wants and what the token says, whatever the decision.
#[must_use]
pub fn trace(grant: &Grant, request: &Request<'_>) -> Trace {
    trace_of(grant, request.issuer, request.claims)
}

fn trace_of(grant: &Grant, issuer: &IssuerName, claims: &Claims) -> Trace {
    let rules = grant.rules.iter().map(|rule| {
        let issuer_matches = is_of_issuer(rule, issuer, claims);
        let checks = if issuer_matches { rule.checks.as_slice() } else { &[] };
        RuleTrace {
            rule: rule.name.clone(),
            issuer: rule.issuer.clone(),
            issuer_matches,
            checks: checks.iter().map(|check| check_trace(check, rule, claims)).collect(),
            condition: rule.condition.as_ref().filter(|_| issuer_matches).map(|condition| condition.trace(claims)),
        }
    });
    Trace { grant: grant.name.to_string(), because: None, rules: rules.collect() }
}

fn check_trace(check: &Check, rule: &Rule, claims: &Claims) -> CheckTrace {
    let held = claims.held(&check.slot);
    CheckTrace {
        claim: check.claim.to_string(),
        wanted: check.matcher.to_string(),
        got: match held {
            Held::Absent => None,
            Held::Unusable => Some("of an unknown form".to_owned()),
            Held::Is(value) => Some(value.to_string()),
        },
        recorded: rule.profile.is_recorded(&check.claim),
        matches: check.matcher.is_match(held),
    }
}
