//! Issuer profiles: what the tokens of one CI look like, as data (`issuers/*.toml`).
//!
//! A profile knows nothing of a server's configuration; [`Issuer`] joins the two. Adding a CI is
//! adding a file to [`SOURCES`], never a branch in the code.

use jobpass_protocol::IssuerName;
use regex::Regex;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock},
};

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
    chars: Option<Regex>,
}

impl Claim {
    /// Whether a value of this claim may hold `c`, as far as the platform promises.
    #[must_use]
    pub fn may_hold(&self, c: char) -> bool {
        self.chars.as_ref().is_none_or(|chars| chars.is_match(c.encode_utf8(&mut [0; 4])))
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

/// What linting knows about a CI beyond its claims.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LintFacts {
    /// Claims that bound which code runs.
    pub code: Vec<String>,
    /// The claim that says what started the job.
    pub event: Option<String>,
    /// Its values under which strangers' input runs with the repository's rights.
    pub events_dangerous: Vec<String>,
    /// Its values that run code which nobody has reviewed yet.
    pub events_review: Vec<String>,
    /// The claim that says whose machine the job runs on.
    pub runner: Option<String>,
    /// Its value for a machine of the platform.
    pub runner_hosted: Option<String>,
    /// The claim that names the deployment environment.
    pub environment: Option<String>,
    /// A reusable workflow's claims.
    pub reusable: Option<Reusable>,
    /// The claim that says whether the environment has a protection.
    pub environment_protected: Option<String>,
    /// Claims that are free text of whoever writes the pipeline.
    pub free_text: Vec<String>,
    /// Two claims that differ when a fork's code runs in the parent project.
    pub fork: Option<Fork>,
    /// Claims that do not say whether they are a branch or a tag.
    pub ref_type: Option<RefType>,
    /// Claims and values that mark a debugging session or another job that must not get credentials.
    pub refuse: BTreeMap<String, Vec<String>>,
    /// Claims of which a rule has to name at least one, and why.
    pub demand: Vec<Demand>,
}

/// See [`LintFacts::reusable`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reusable {
    /// Names the workflow file at a ref.
    pub claim: String,
    /// Its commit.
    pub sha: String,
    /// Claims that say who calls it.
    pub caller: Vec<String>,
}

/// See [`LintFacts::fork`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// The claim that must equal the other.
    pub claim: String,
    /// The other.
    pub must_equal: String,
}

/// See [`LintFacts::ref_type`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefType {
    /// Claims with a bare ref name.
    pub claims: Vec<String>,
    /// The claim that says of which type it is; absent where the CI has none.
    #[serde(default)]
    pub by: Option<String>,
    /// Values that start so say their type themselves.
    #[serde(default)]
    pub unless_prefixed: Vec<String>,
}

/// See [`LintFacts::demand`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// One of these must be matched.
    pub any_of: Vec<String>,
    /// Why.
    pub because: String,
}

/// How to speak of a CI's jobs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Words {
    /// What runs: `any workflow`.
    pub any: String,
    /// Claims that say which one, each with what to say of its value: `["workflow_ref", "workflow {}"]`.
    pub which: Vec<(String, String)>,
    /// Other claims, in the order in which to speak of them.
    pub say: Vec<(String, String)>,
}

impl Default for Words {
    fn default() -> Self {
        Self { any: "any job".to_owned(), which: Vec::new(), say: Vec::new() }
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
        PROFILES.iter().find(|profile| profile.name == name).cloned()
    }

    /// Every profile, in the order of [`SOURCES`].
    pub fn all() -> impl Iterator<Item = &'static Arc<Self>> {
        PROFILES.iter()
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

/// The profiles' texts by name.
pub(crate) const SOURCES: &[(&str, &str)] = &[
    ("github", include_str!("../issuers/github.toml")),
    ("gitlab", include_str!("../issuers/gitlab.toml")),
    ("buildkite", include_str!("../issuers/buildkite.toml")),
    ("circleci", include_str!("../issuers/circleci.toml")),
    ("bitbucket", include_str!("../issuers/bitbucket.toml")),
    ("azure-devops", include_str!("../issuers/azure-devops.toml")),
    ("terraform", include_str!("../issuers/terraform.toml")),
    ("jenkins", include_str!("../issuers/jenkins.toml")),
    ("codefresh", include_str!("../issuers/codefresh.toml")),
    ("semaphore", include_str!("../issuers/semaphore.toml")),
    ("forgejo", include_str!("../issuers/forgejo.toml")),
    ("kubernetes", include_str!("../issuers/kubernetes.toml")),
    ("spiffe", include_str!("../issuers/spiffe.toml")),
    ("google", include_str!("../issuers/google.toml")),
];

static PROFILES: LazyLock<Vec<Arc<Profile>>> = LazyLock::new(|| {
    SOURCES
        .iter()
        .filter_map(|(_, text)| {
            // A profile that does not parse cannot be shipped: a test parses every one.
            File::parse(text).ok().map(Arc::new)
        })
        .collect()
});

/// A profile as its file writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    title: String,
    docs: String,
    url: Option<String>,
    urls: Vec<FileUrl>,
    jwks_uri: Option<String>,
    algorithms: Vec<String>,
    max_age: u64,
    max_lifetime: u64,
    token_types: Vec<String>,
    #[serde(default)]
    required: Vec<String>,
    jti: bool,
    uses_per_token: u32,
    tenant: Option<String>,
    #[serde(default)]
    tenant_also: Vec<String>,
    subject: Option<FileSubject>,
    #[serde(default)]
    lint: LintFacts,
    #[serde(default)]
    words: Words,
    claims: BTreeMap<String, FileClaim>,
    #[serde(default)]
    derived: BTreeMap<String, FileDerived>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileUrl {
    form: String,
    shared: bool,
    #[expect(dead_code, reason = "the file says to its reader what the form is")]
    about: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSubject {
    claim: String,
    shapes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileClaim {
    class: Class,
    #[serde(default, rename = "type")]
    kind: Kind,
    recorded: bool,
    /// Where the value lies, if not in the top-level member of the claim's name.
    pointer: Option<String>,
    #[serde(default)]
    separators: String,
    #[serde(default)]
    values: Vec<String>,
    /// The inside of a character class.
    chars: Option<String>,
    id: Option<String>,
    #[serde(default)]
    fold_case: bool,
    about: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDerived {
    pattern: String,
}

/// Why a profile's text is not a profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    #[error(transparent)]
    Regex(#[from] regex::Error),
    #[error("{0} names the claim {1}, which the profile does not have")]
    UnknownClaim(&'static str, String),
    #[error("{0} is not a JSON pointer")]
    Pointer(String),
}

fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!(r"\A(?:{pattern})\z"))
}

/// The pattern without the names of its groups, so that it can stand beside another one.
pub(crate) fn unnamed(whole: &Regex) -> String {
    whole.capture_names().flatten().fold(unwrapped(whole).to_owned(), |pattern, name| {
        pattern.replace(&format!("(?<{name}>"), "(?:").replace(&format!("(?P<{name}>"), "(?:")
    })
}

/// The pattern that [`whole`] was given.
pub(crate) fn unwrapped(whole: &Regex) -> &str {
    let pattern = whole.as_str();
    pattern.strip_prefix(r"\A(?:").and_then(|rest| rest.strip_suffix(r")\z")).unwrap_or(pattern)
}

impl File {
    fn parse(text: &str) -> Result<Profile, ProfileError> {
        let file: Self = toml::from_str(text)?;
        let mut profile = Profile {
            name: file.name,
            title: file.title,
            docs: file.docs,
            default_url: file.url,
            urls: file
                .urls
                .iter()
                .map(|url| Ok(UrlForm { form: whole(&url.form)?, shared: url.shared }))
                .collect::<Result<_, regex::Error>>()?,
            jwks_uri: file.jwks_uri,
            algorithms: file.algorithms,
            max_age: file.max_age,
            max_lifetime: file.max_lifetime,
            token_types: file.token_types,
            required: file.required,
            has_jti: file.jti,
            uses_per_token: file.uses_per_token,
            tenant: file.tenant,
            tenant_also: file.tenant_also,
            subject: None,
            lint: file.lint,
            words: file.words,
            claims: Vec::new(),
            prefixes: Vec::new(),
            by_name: HashMap::new(),
            readers: HashMap::new(),
            derivations: Vec::new(),
            first_derived: 0,
        };
        for (name, claim) in file.claims {
            profile.add_claim(&name, claim)?;
        }
        profile.first_derived = profile.claims.len();
        let subject = file.subject.as_ref().map(|s| (s.claim.clone(), s.shapes.clone()));
        let derived = file.derived.into_iter().map(|(from, derived)| (from, vec![derived.pattern]));
        for (from, patterns) in subject.into_iter().chain(derived) {
            profile.add_derivation(&from, &patterns)?;
        }
        if let Some(subject) = file.subject {
            let slot = profile.known("subject", &subject.claim)?;
            let shapes = subject.shapes.iter().map(|shape| whole(shape)).collect::<Result<_, _>>()?;
            profile.subject = Some(Subject { slot, shapes });
        }
        profile.check_names()?;
        Ok(profile)
    }
}

impl Profile {
    fn add_claim(&mut self, name: &str, file: FileClaim) -> Result<(), ProfileError> {
        let claim = Claim {
            name: name.trim_end_matches('*').into(),
            kind: file.kind,
            class: file.class,
            recorded: file.recorded,
            separators: file.separators.into(),
            values: file.values,
            id: file.id,
            fold_case: file.fold_case,
            about: file.about,
            chars: file.chars.map(|chars| whole(&format!("[{chars}]"))).transpose()?,
        };
        if name.ends_with('*') {
            self.prefixes.push(claim);
            return Ok(());
        }
        let slot = self.push(claim);
        let (member, path) = match file.pointer {
            None => (name.to_owned(), Vec::new()),
            Some(pointer) => {
                let mut tokens = pointer.split('/').map(|token| token.replace("~1", "/").replace("~0", "~"));
                match (tokens.next().as_deref(), tokens.next()) {
                    (Some(""), Some(member)) => (member, tokens.collect()),
                    _ => return Err(ProfileError::Pointer(pointer)),
                }
            }
        };
        self.readers.entry(member.into()).or_default().push(Reader { slot, path });
        Ok(())
    }

    fn push(&mut self, claim: Claim) -> u32 {
        let slot = u32::try_from(self.claims.len()).unwrap_or(u32::MAX);
        self.by_name.insert(claim.name.clone(), slot);
        self.claims.push(claim);
        slot
    }

    /// A derived claim is as trustworthy as the one it is cut from; ids in it are as stable as text
    /// in a format that somebody else may choose can be, which is why they take its class.
    fn add_derivation(&mut self, from: &str, patterns: &[String]) -> Result<(), ProfileError> {
        let slot = self.known("derived", from)?;
        let class = self.claims.get(slot as usize).map_or(Class::Chosen, |claim| claim.class);
        let patterns = patterns.iter().map(|pattern| whole(pattern)).collect::<Result<Vec<_>, _>>()?;
        let mut targets: Vec<(String, u32)> = Vec::new();
        for name in patterns.iter().flat_map(|pattern| pattern.capture_names().flatten()) {
            if targets.iter().all(|(known, _)| known != name) {
                let target = self.push(Claim {
                    name: name.into(),
                    kind: Kind::Text,
                    class,
                    recorded: false,
                    separators: "".into(),
                    values: Vec::new(),
                    id: None,
                    fold_case: false,
                    about: None,
                    chars: None,
                });
                targets.push((name.to_owned(), target));
            }
        }
        self.derivations.push(Derivation { from: slot, patterns, targets });
        Ok(())
    }

    fn known(&self, by: &'static str, name: &str) -> Result<u32, ProfileError> {
        self.by_name.get(name).copied().ok_or_else(|| ProfileError::UnknownClaim(by, name.to_owned()))
    }

    fn check_names(&self) -> Result<(), ProfileError> {
        let lint = &self.lint;
        let optional = [&lint.event, &lint.runner, &lint.environment, &lint.environment_protected, &self.tenant];
        let reusable = lint.reusable.iter().flat_map(|r| [&r.claim, &r.sha].into_iter().chain(&r.caller));
        let fork = lint.fork.iter().flat_map(|f| [&f.claim, &f.must_equal]);
        let ref_type = lint.ref_type.iter().flat_map(|r| r.claims.iter().chain(&r.by));
        let names = (self.required.iter().map(|name| ("required", name)))
            .chain(lint.code.iter().map(|name| ("lint.code", name)))
            .chain(optional.into_iter().flatten().chain(&lint.free_text).map(|name| ("lint", name)))
            .chain(self.tenant_also.iter().map(|name| ("tenant_also", name)))
            .chain(reusable.map(|name| ("lint.reusable", name)))
            .chain(fork.map(|name| ("lint.fork", name)))
            .chain(ref_type.map(|name| ("lint.ref_type", name)))
            .chain(lint.refuse.keys().map(|name| ("lint.refuse", name)))
            .chain(self.words.which.iter().chain(&self.words.say).map(|(name, _)| ("words", name)))
            .chain(lint.demand.iter().flat_map(|d| &d.any_of).map(|name| ("lint.demand", name)))
            .chain(self.claims.iter().filter_map(|claim| claim.id.as_ref()).map(|name| ("id", name)));
        for (by, name) in names {
            self.known(by, name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
