//! Everything that a policy file can get wrong, each with its code and its cure.

use crate::{
    condition::ConditionError,
    pattern::PatternError,
    source::{Diagnostic, Text},
};
use jobpass_protocol::NameError;
use std::ops::Range;

/// Names the variants of an error: by a `match`, so that none can be forgotten.
macro_rules! kinds {
    ($vis:vis $name:ident, $all:ident: $($variant:ident => $text:literal),+ $(,)?) => {
        /// Every kind's name.
        #[cfg(test)]
        $vis const $all: &[&str] = &[$($text),+];

        /// The kind's name.
        $vis fn $name(&self) -> &'static str {
            match self {
                $(Self::$variant { .. } => $text,)+
            }
        }
    };
}

/// Why a policy file, or a part of one, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    #[error("{0}")]
    Name(NameError),
    #[error("the grant `{name}` is also defined in {other}")]
    DuplicateGrant { name: String, other: String },
    #[error("`{0}` says nobody")]
    Owner(String),
    #[error("`{0}` is not a time: expected a number and one of s, m, h, d, from 1s to 7d")]
    Duration(String),
    #[error("`max_lifetime` is shorter than `ttl`")]
    MaxLifetime,
    #[error("`{0}` is not a day: expected YYYY-MM-DD")]
    Date(String),
    #[error("`{0}` is not a scope: expected printable ASCII without space, \" and \\")]
    Scope(String),
    #[error("`{0}` is there twice")]
    Duplicate(String),
    #[error("a grant without rules permits nobody")]
    NoRules,
    #[error("a rule without matchers permits every job of its issuer")]
    EmptyRule,
    #[error("there is no issuer `{name}`{}", or_did_you_mean(.nearest))]
    UnknownIssuer { name: String, nearest: Option<String>, known: Vec<String> },
    #[error("{profile} tokens have no claim `{claim}`{}", or_did_you_mean(.nearest))]
    UnknownClaim { claim: String, profile: String, nearest: Option<String> },
    #[error("{0}")]
    Pattern(PatternError),
    #[error("`{name}` is not an operator{}", or_did_you_mean(.nearest))]
    UnknownOperator { name: String, nearest: Option<String> },
    #[error("a matcher has exactly one operator, and this one has {0}")]
    OperatorCount(usize),
    #[error("`{0}` is compared with nothing")]
    Null(String),
    #[error("an empty list matches nothing")]
    EmptyList,
    #[error("`{operator}` takes {expected}")]
    Operand { operator: &'static str, expected: &'static str },
    #[error("the rule accepts tokens of every tenant: anyone can get a {profile} token with this server's audience")]
    TenantPin { profile: String, claim: Option<String> },
    #[error("there is no fixture `{name}`{}", or_did_you_mean(.nearest))]
    UnknownFixture { name: String, nearest: Option<String> },
    #[error("{0}")]
    CaseIssuer(String),
    #[error("`{claim}` is cut out of `{from}`")]
    DerivedClaim { claim: String, from: String },
    #[error("the claims are none that a token could have: {0}")]
    CaseClaims(String),
    #[error("the grant has no rule `{name}`{}", or_did_you_mean(.nearest))]
    UnknownRule { name: String, nearest: Option<String> },
    #[error("there is no grant `{name}`{}", or_did_you_mean(.nearest))]
    UnknownGrant { name: String, nearest: Option<String> },
    #[error("{0}")]
    CaseReason(&'static str),
    #[error("{0}")]
    Condition(ConditionError),
    #[error("`{0}` is not a moment: expected 2026-12-20T00:00:00Z, a day of the week or an hour such as 18:00")]
    Moment(String),
    #[error("a closed time is either from a moment until another, or weekly")]
    Window,
    #[error("guards are written in one file, and {0} is another")]
    SecondGuards(String),
    #[error("rule {rule}: the guards do not allow the issuer `{issuer}`")]
    GuardIssuer { rule: String, issuer: String },
    #[error("rule {rule}: the guards require `{claim}` to be pinned to listed values")]
    GuardPin { rule: String, claim: String },
    #[error("`{field}` is {is}s, and {by} allows at most {most}s")]
    Ceiling { field: &'static str, is: u32, most: u32, by: String },
    #[error("{what} `{value}` is beyond what {by} allows")]
    OutOfScope { what: &'static str, value: String, by: String },
    #[error("the lint rule `{0}` is allowed without a reason")]
    AllowReason(String),
}

fn or_did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

impl Problem {
    /// The problem at a place of a file.
    pub(crate) fn at(&self, file: &Text, at: Option<Range<usize>>) -> Diagnostic {
        Diagnostic::new(file, at, self.code(), self.to_string()).with_help(self.help())
    }

    kinds! { pub(crate) code, CODES:
        Name => "name",
        DuplicateGrant => "duplicate-grant",
        Owner => "owner",
        Duration => "duration",
        MaxLifetime => "max-lifetime",
        Date => "date",
        Scope => "scope",
        Duplicate => "duplicate",
        NoRules => "no-rules",
        EmptyRule => "empty-rule",
        UnknownIssuer => "unknown-issuer",
        UnknownClaim => "unknown-claim",
        Pattern => "pattern",
        UnknownOperator => "unknown-operator",
        OperatorCount => "operator-count",
        Null => "null",
        EmptyList => "empty-list",
        Operand => "operand",
        TenantPin => "tenant-pin",
        UnknownFixture => "unknown-fixture",
        CaseIssuer => "case-issuer",
        DerivedClaim => "derived-claim",
        CaseClaims => "case-claims",
        UnknownRule => "unknown-rule",
        UnknownGrant => "unknown-grant",
        CaseReason => "case-reason",
        Condition => "condition",
        Moment => "moment",
        Window => "window",
        SecondGuards => "second-guards",
        GuardIssuer => "guard-issuer",
        GuardPin => "guard-pin",
        Ceiling => "ceiling",
        OutOfScope => "out-of-scope",
        AllowReason => "allow-reason",
    }

    /// How to repair it.
    pub(crate) fn help(&self) -> String {
        match self {
            Self::Name(_) => "for example `deploy-prod`".to_owned(),
            Self::DuplicateGrant { .. } => "rename one of them: neither is loaded until then".to_owned(),
            Self::Owner(_) => "write a team's address, such as team-platform@acme.example".to_owned(),
            Self::Duration(_) => "for example 15m".to_owned(),
            Self::MaxLifetime => "make it at least as long as `ttl`, or leave it out to allow no renewal".to_owned(),
            Self::Date(_) => "for example 2027-06-30".to_owned(),
            Self::Scope(_) => "for example read".to_owned(),
            Self::Duplicate(_) => "take one of them away".to_owned(),
            Self::NoRules => "write at least one rule".to_owned(),
            Self::EmptyRule => "say under `match:` whose jobs and which of them".to_owned(),
            Self::UnknownIssuer { known, .. } => format!("the issuers are: {}", known.join(", ")),
            Self::UnknownClaim { profile, .. } => {
                format!("see `policy claims` for what {profile} tokens hold")
            }
            Self::Pattern(error) => error.help(),
            Self::UnknownOperator { .. } | Self::OperatorCount(_) => {
                "write one of { glob: … }, { regex: … }, { contains: … }, { absent: true }".to_owned()
            }
            Self::Null(_) => {
                "write { absent: true } for a claim that must not be there, \"\" for an empty one".to_owned()
            }
            Self::EmptyList => "list at least one value, or take the rule away".to_owned(),
            Self::Operand { operator, .. } => {
                format!("to accept any of several, list the matchers: [{{ {operator}: … }}, …]")
            }
            Self::TenantPin { claim: Some(claim), .. } => {
                format!(
                    "add `{claim}: \"…\"` with your own id, or list `tenants:` of the issuer in the server's config"
                )
            }
            Self::TenantPin { claim: None, .. } => "list `tenants:` of the issuer in the server's config".to_owned(),
            Self::UnknownFixture { .. } => "see `policy fixtures` for those that there are".to_owned(),
            Self::CaseIssuer(_) => "write `issuer:` with the name of the issuer that the token is from".to_owned(),
            Self::DerivedClaim { from, .. } => format!("set `{from}` instead"),
            Self::CaseClaims(_) => "start from a fixture: { from: github/push, … }".to_owned(),
            Self::UnknownRule { .. } => "name a rule of this grant".to_owned(),
            Self::UnknownGrant { .. } => "name a grant of these policies".to_owned(),
            Self::CaseReason(_) => "see docs/policies.md, “Tests”".to_owned(),
            Self::Condition(error) => error.help(),
            Self::Moment(_) => "times are in UTC".to_owned(),
            Self::Window => {
                "write `from:` and `until:`, or `weekly: { days: [saturday], from: \"00:00\", until: \"24:00\" }`"
                    .to_owned()
            }
            Self::SecondGuards(_) => "put them together".to_owned(),
            Self::GuardIssuer { .. } => "use one of the issuers in guards.yaml".to_owned(),
            Self::GuardPin { claim, .. } => format!("add `{claim}: \"…\"` to the rule"),
            Self::Ceiling { .. } => "shorten it".to_owned(),
            Self::OutOfScope { .. } => "stay within it, or ask its owner to widen it".to_owned(),
            Self::AllowReason(_) => "say in `reason:` why it does not count here".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
