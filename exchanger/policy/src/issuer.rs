//! Issuer profiles: what the tokens of one CI look like, as data (`issuers/*.toml`).
//!
//! A profile knows nothing of a server's configuration; [`Issuer`] joins the two. Adding a CI is
//! adding a file to `file::SOURCES`, never a branch in the code.

mod facts;
mod file;

pub use facts::{Ask, Demand, Fork, LintFacts, RefType, Reusable, Words};
pub(crate) use file::{unnamed, unwrapped};

use crate::claims::Claims;
use file::profiles;
use foldhash::HashMap;
use jobpass_protocol::IssuerName;
use regex::Regex;
use serde::Deserialize;
use std::sync::Arc;

/// A configured issuer, as policy sees it.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The name that rules use.
    pub name: IssuerName,
    /// The exact `iss`.
    pub url: String,
    /// What its tokens look like.
    pub profile: Arc<Profile>,
    /// The tenants that may talk to us at all (values of [`Profile::tenant_claim`]). Where there
    /// are any, a token of another tenant never gets to a decision.
    pub tenants: Vec<String>,
    /// Whether strangers, too, can get tokens of this issuer.
    pub shared: bool,
}

impl Issuer {
    /// Whether a token's tenant may talk to us at all.
    #[must_use]
    pub fn admits(&self, claims: &Claims) -> bool {
        self.tenants.is_empty() || claims.tenant().is_some_and(|own| self.tenants.iter().any(|one| *one == own))
    }

    /// The issuer that tools without a configuration assume under this name: the profile of the
    /// same name at its default address (or at an address of nobody, where it has none).
    #[must_use]
    pub fn assumed(name: &IssuerName) -> Option<Self> {
        let profile = Profile::named(name.as_str())?;
        let url = profile.default_url().unwrap_or("https://issuer.invalid").to_owned();
        let shared = profile.default_url().is_some_and(|url| profile.is_shared(url));
        Some(Self { name: name.clone(), url, profile, tenants: Vec::new(), shared })
    }
}

/// What kind of value a claim has; scalars are compared as this type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text; numbers and booleans are read as their text.
    #[default]
    Text,
    /// A whole number; digits in a string are read as one.
    Int,
    /// True or false; the words in a string are read as one.
    Bool,
    /// A list of texts.
    List,
    /// Anything: only its presence, and what is derived from it, can be matched.
    Json,
}

impl Kind {
    /// The kind in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Int => "a whole number",
            Self::Bool => "true or false",
            Self::List => "a list",
            Self::Json => "an object",
        }
    }
}

/// Who decides a claim's value, and whether the value can come to mean somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// An id that the platform gives and never gives again.
    Stable,
    /// A fact that the platform asserts (an event's kind, a commit, a runner's kind).
    Asserted,
    /// A name that can be changed, and then taken by somebody else.
    Name,
    /// Chosen by whoever writes the pipeline, pushes the branch or starts the job.
    Chosen,
}

impl Class {
    /// The class in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Stable => "an id that is never reused",
            Self::Asserted => "a fact that the platform asserts",
            Self::Name => "a name that can change hands",
            Self::Chosen => "chosen by whoever starts or writes the job",
        }
    }
}

/// A claim that a profile knows.
#[derive(Debug)]
pub struct Claim {
    /// The name that policies use.
    pub name: Box<str>,
    /// The type that it is compared as.
    pub kind: Kind,
    /// Who decides its value.
    pub class: Class,
    /// Whether the audit log keeps it.
    pub recorded: bool,
    /// Characters, besides `/`, at which a glob's `*` stops.
    pub separators: Box<str>,
    /// Its possible values, where the platform lists them.
    pub values: Vec<String>,
    /// The claim with the id behind this name.
    pub id: Option<String>,
    /// Whether the platform treats upper and lower case of it as the same name.
    pub fold_case: bool,
    /// One line for people.
    pub about: Option<String>,
    /// How many `/` and `:` come before what its value's owner owns: a pattern that is open before that
    /// lets other owners in.
    pub owner_after: Option<usize>,
    chars: Option<Regex>,
    form: Option<Regex>,
    unlike: Option<Regex>,
}

impl Claim {
    /// Whether a value of this claim may hold `c`, as far as the platform promises.
    #[must_use]
    pub fn may_hold(&self, c: char) -> bool {
        self.chars.as_ref().is_none_or(|chars| chars.is_match(c.encode_utf8(&mut [0; 4])))
    }

    /// Whether a token could have this value, as far as the platform promises.
    #[must_use]
    pub fn could_be(&self, value: &str) -> bool {
        (self.values.is_empty() || self.values.iter().any(|known| known == value))
            && value.chars().all(|c| self.may_hold(c))
            && self.form.as_ref().is_none_or(|form| form.is_match(value))
            && !self.unlike.as_ref().is_some_and(|unlike| unlike.is_match(value))
    }

    /// A regular expression of the characters that the platform promises.
    pub(crate) fn alphabet(&self) -> Option<&str> {
        self.chars.as_ref().map(unwrapped)
    }

    /// Whether the platform promises which characters the values have.
    #[must_use]
    pub fn has_alphabet(&self) -> bool {
        self.chars.is_some()
    }
}

/// What a CI's tokens look like.
#[derive(Debug)]
pub struct Profile {
    name: String,
    title: String,
    docs: String,
    default_url: Option<String>,
    urls: Vec<UrlForm>,
    jwks_uri: Option<String>,
    algorithms: Vec<String>,
    max_age: u64,
    max_lifetime: u64,
    token_types: Vec<String>,
    required: Vec<String>,
    has_jti: bool,
    uses_per_token: u32,
    tenant: Option<String>,
    tenant_also: Vec<String>,
    subject: Option<Subject>,
    lint: LintFacts,
    words: Words,
    first: Vec<Ask>,
    claims: Vec<Claim>,
    prefixes: Vec<Claim>,
    by_name: HashMap<Box<str>, u32>,
    readers: HashMap<Box<str>, Vec<Reader>>,
    derivations: Vec<Derivation>,
    first_derived: usize,
}

#[derive(Debug)]
struct UrlForm {
    form: Regex,
    shared: bool,
    hosted: bool,
}

#[derive(Debug)]
struct Subject {
    slot: u32,
    shapes: Vec<Regex>,
}

/// Where in a top-level member a claim's value lies.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) slot: u32,
    /// The unescaped tokens of a JSON pointer below the member (RFC 6901 §4).
    pub(crate) path: Vec<String>,
}

/// Claims that named groups cut out of another one.
#[derive(Debug)]
pub(crate) struct Derivation {
    pub(crate) from: u32,
    /// The first pattern that matches the whole value gives the claims.
    pub(crate) patterns: Vec<Regex>,
    pub(crate) targets: Vec<(String, u32)>,
}

/// Where a claim's value is to be found in [`crate::claims::Claims`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    /// A claim of the profile.
    Known(u32),
    /// A claim that the profile knows by the start of its name only.
    Named(Box<str>),
}

impl Profile {
    /// The profile of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Arc<Self>> {
        profiles(|known| known == name).next().cloned()
    }

    /// Every profile, in the order of `file::SOURCES`.
    pub fn all() -> impl Iterator<Item = &'static Arc<Self>> {
        profiles(|_| true)
    }

    /// The name that configuration uses: `github`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The CI's own name: `GitHub Actions`.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The vendor's page about its tokens.
    #[must_use]
    pub fn docs(&self) -> &str {
        &self.docs
    }

    /// The issuer that a configuration gets which names no URL.
    #[must_use]
    pub fn default_url(&self) -> Option<&str> {
        self.default_url.as_deref()
    }

    /// Whether this CI has issuers of that form. Loopback addresses always fit, so that a demo or a
    /// test can play the CI; whether plain http is allowed is the server's business.
    #[must_use]
    pub fn url_matches(&self, url: &str) -> bool {
        self.form_of(url).is_some() || is_loopback(url)
    }

    /// Where the keys are, if not where discovery on the issuer's own host says.
    #[must_use]
    pub fn jwks_uri(&self) -> Option<&str> {
        self.jwks_uri.as_deref()
    }

    /// The signature algorithms that the CI uses (RFC 7518 §3.1 names).
    #[must_use]
    pub fn algorithms(&self) -> &[String] {
        &self.algorithms
    }

    /// Seconds since `iat` after which a token is too old, whatever its `exp` says.
    #[must_use]
    pub fn max_age(&self) -> u64 {
        self.max_age
    }

    /// The longest `exp` - `iat` in seconds.
    #[must_use]
    pub fn max_lifetime(&self) -> u64 {
        self.max_lifetime
    }

    /// Claims without which a token is not one of this CI's jobs'.
    #[must_use]
    pub fn required_claims(&self) -> &[String] {
        &self.required
    }

    /// The accepted header `typ`s, compared without case; an empty text stands for none.
    #[must_use]
    pub fn token_types(&self) -> &[String] {
        &self.token_types
    }

    /// Whether every token has a `jti`.
    #[must_use]
    pub fn has_jti(&self) -> bool {
        self.has_jti
    }

    /// How many exchanges one token is good for.
    #[must_use]
    pub fn uses_per_token(&self) -> u32 {
        self.uses_per_token
    }

    /// Whether strangers can get tokens of the issuer at `url`, so that tenants have to be pinned.
    /// An unknown form counts as shared; loopback does as the profile's default address does.
    #[must_use]
    pub fn is_shared(&self, url: &str) -> bool {
        match self.form_of(url) {
            Some(form) => form.shared,
            None if is_loopback(url) => self.default_url().and_then(|url| self.form_of(url)).is_some_and(|f| f.shared),
            None => true,
        }
    }

    /// The profile, not this one, whose shared issuer is at `url`: its tokens are strangers' too.
    #[must_use]
    pub fn shared_elsewhere(&self, url: &str) -> Option<&'static Arc<Self>> {
        let has_shared = |profile: &Self| profile.form_of(url).is_some_and(|form| form.shared);
        if has_shared(self) {
            return None;
        }
        Self::all().find(|other| other.name != self.name && has_shared(other))
    }

    /// Whether jobs of the issuer at `url` can run on machines of the platform.
    #[must_use]
    pub fn has_hosted_runners(&self, url: &str) -> bool {
        self.form_of(url).is_none_or(|form| form.hosted)
    }

    /// The stable id that says whose job it is.
    #[must_use]
    pub fn tenant_claim(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// Whether pinning the claims that `pins` says yes to pins the tenant: its own claim, or one
    /// that belongs to one tenant as surely.
    #[must_use]
    pub fn pins_tenant(&self, pins: impl Fn(&str) -> bool) -> bool {
        self.tenant.iter().chain(&self.tenant_also).any(|claim| pins(claim))
    }

    /// The claim whose value must have a known shape.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        let slot = self.subject.as_ref()?.slot;
        self.claim_at(slot).map(|claim| &*claim.name)
    }

    /// How to speak of this CI's jobs.
    #[must_use]
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// The claims that a first grant asks for, in order.
    #[must_use]
    pub fn first(&self) -> &[Ask] {
        &self.first
    }

    /// What linting knows about this CI.
    #[must_use]
    pub fn lint(&self) -> &LintFacts {
        &self.lint
    }

    /// The claims that policies can name, without those known by a prefix only.
    pub fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.claims.iter()
    }

    /// The claim that a policy means by `name`.
    #[must_use]
    pub fn claim(&self, name: &str) -> Option<&Claim> {
        match self.by_name.get(name) {
            Some(&slot) => self.claims.get(slot as usize),
            None => self.prefixes.iter().find(|claim| name.starts_with(&*claim.name)),
        }
    }

    /// Whether a claim is computed from another one, and from which.
    #[must_use]
    pub fn derived_from(&self, name: &str) -> Option<&str> {
        let slot = *self.by_name.get(name)?;
        let derivation = self.derivations.iter().find(|d| d.targets.iter().any(|(_, target)| *target == slot))?;
        self.claims.get(derivation.from as usize).map(|claim| &*claim.name)
    }

    /// Whether the audit log may hold a claim; a derived one goes with the one it is cut from.
    #[must_use]
    pub fn is_recorded(&self, name: &str) -> bool {
        self.claim(self.derived_from(name).unwrap_or(name)).is_some_and(|claim| claim.recorded)
    }

    pub(crate) fn slot(&self, name: &str) -> Option<Slot> {
        match self.by_name.get(name) {
            Some(&slot) => Some(Slot::Known(slot)),
            None => self.claim(name).map(|_| Slot::Named(name.into())),
        }
    }

    /// Where in a payload a claim lies: the members to go through.
    pub(crate) fn path_of(&self, name: &str) -> Vec<String> {
        let reads = |reader: &&Reader| self.by_name.get(name) == Some(&reader.slot);
        let found = self.readers.iter().find_map(|(member, readers)| Some((member, readers.iter().find(reads)?)));
        match found {
            Some((member, reader)) => std::iter::once(member.to_string()).chain(reader.path.iter().cloned()).collect(),
            None => vec![name.to_owned()],
        }
    }

    pub(crate) fn slots(&self) -> usize {
        self.claims.len()
    }

    pub(crate) fn claim_at(&self, slot: u32) -> Option<&Claim> {
        self.claims.get(slot as usize)
    }

    pub(crate) fn first_derived(&self) -> usize {
        self.first_derived
    }

    pub(crate) fn readers(&self, member: &str) -> Option<&[Reader]> {
        self.readers.get(member).map(Vec::as_slice)
    }

    pub(crate) fn derivations(&self) -> &[Derivation] {
        &self.derivations
    }

    /// What a usable subject looks like, as a regular expression, where the claim is the subject.
    pub(crate) fn subject_shape(&self, name: &str) -> Option<String> {
        let subject = self.subject.as_ref().filter(|subject| self.by_name.get(name) == Some(&subject.slot))?;
        Some(subject.shapes.iter().map(unnamed).collect::<Vec<_>>().join("|"))
    }

    /// Whether the claim in `slot` is the subject, and `value` has none of the shapes it can have.
    pub(crate) fn misshapen(&self, slot: u32, value: &str) -> bool {
        self.subject
            .as_ref()
            .is_some_and(|subject| subject.slot == slot && !subject.shapes.iter().any(|shape| shape.is_match(value)))
    }

    fn form_of(&self, url: &str) -> Option<&UrlForm> {
        self.urls.iter().find(|form| form.form.is_match(url))
    }
}

fn is_loopback(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = if authority.starts_with('[') {
        authority.split(']').next().unwrap_or(authority).trim_start_matches('[')
    } else {
        authority.split(':').next().unwrap_or(authority)
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::{
        file::{File, SOURCES},
        *,
    };

    #[test]
    fn every_profile_parses_under_its_name() {
        for (name, text) in SOURCES {
            let profile = File::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(profile.name(), *name);
            assert!(Profile::named(name).is_some());
            if let Some(url) = profile.default_url() {
                assert!(profile.url_matches(url), "{name}: {url}");
            }
            assert!(!profile.algorithms().iter().any(|alg| alg.starts_with("HS") || alg == "none"), "{name}");
            assert!(profile.max_age() <= profile.max_lifetime(), "{name}");
        }
    }

    #[test]
    fn urls() {
        for (profile, url, matches, shared) in [
            ("github", "https://token.actions.githubusercontent.com", true, true),
            ("github", "https://token.actions.githubusercontent.com/acme", true, false),
            ("github", "https://token.actions.githubusercontent.com/acme/x", false, true),
            ("github", "https://token.actions.acme.ghe.com", true, false),
            ("github", "https://ghes.acme.example/_services/token", true, false),
            ("github", "https://token.actions.githubusercontent.com.evil.example", false, true),
            ("github", "http://127.0.0.1:4000", true, true),
            ("github", "http://[::1]:4000", true, true),
            ("github", "http://127.0.0.1.evil.example", false, true),
            ("gitlab", "https://gitlab.com", true, true),
            ("gitlab", "https://gitlab.acme.example", true, false),
            ("gitlab", "http://gitlab.acme.example", false, true),
        ] {
            let profile = Profile::named(profile).expect("a profile");
            assert_eq!((profile.url_matches(url), profile.is_shared(url)), (matches, shared), "{url}");
        }
        for (profile, url, other) in [
            ("jenkins", "https://token.actions.githubusercontent.com", Some("github")),
            ("kubernetes", "https://accounts.google.com", Some("google")),
            ("github", "https://token.actions.githubusercontent.com", None),
            ("jenkins", "https://jenkins.acme.example", None),
        ] {
            let profile = Profile::named(profile).expect("a profile");
            assert_eq!(profile.shared_elsewhere(url).map(|other| other.name()), other, "{url}");
        }
    }
}
