//! Profiles as their files write them.

use super::{Ask, Claim, Class, Derivation, Kind, LintFacts, Profile, Reader, Subject, UrlForm, Words};
use foldhash::HashMap;
use regex::Regex;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

/// The profiles' texts by name.
pub(super) const SOURCES: &[(&str, &str)] = &[
    ("github", include_str!("../../issuers/github.toml")),
    ("gitlab", include_str!("../../issuers/gitlab.toml")),
    ("buildkite", include_str!("../../issuers/buildkite.toml")),
    ("circleci", include_str!("../../issuers/circleci.toml")),
    ("bitbucket", include_str!("../../issuers/bitbucket.toml")),
    ("azure-devops", include_str!("../../issuers/azure-devops.toml")),
    ("terraform", include_str!("../../issuers/terraform.toml")),
    ("jenkins", include_str!("../../issuers/jenkins.toml")),
    ("codefresh", include_str!("../../issuers/codefresh.toml")),
    ("semaphore", include_str!("../../issuers/semaphore.toml")),
    ("forgejo", include_str!("../../issuers/forgejo.toml")),
    ("kubernetes", include_str!("../../issuers/kubernetes.toml")),
    ("spiffe", include_str!("../../issuers/spiffe.toml")),
    ("google", include_str!("../../issuers/google.toml")),
];

static PROFILES: [OnceLock<Option<Arc<Profile>>>; SOURCES.len()] = [const { OnceLock::new() }; SOURCES.len()];

/// The profiles of the names that are wanted. A profile is read when it is wanted first: most servers know one or two.
pub(super) fn profiles(wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = &'static Arc<Profile>> {
    let wanted = SOURCES.iter().zip(&PROFILES).filter(move |((name, _), _)| wanted(name));
    // A profile that does not parse cannot be shipped: a test parses every one.
    wanted.filter_map(|((_, text), profile)| profile.get_or_init(|| File::parse(text).ok().map(Arc::new)).as_ref())
}

/// A profile as its file writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
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
    /// The claims that a first grant asks for.
    first: Vec<Ask>,
    claims: BTreeMap<String, FileClaim>,
    #[serde(default)]
    derived: BTreeMap<String, FileDerived>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileUrl {
    form: String,
    shared: bool,
    /// Whether the platform has machines of its own for it.
    #[serde(default = "yes")]
    hosted: bool,
    #[expect(dead_code, reason = "the file says to its reader what the form is")]
    about: String,
}

fn yes() -> bool {
    true
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
    owner_after: Option<usize>,
    /// What every value looks like.
    form: Option<String>,
    /// What no value looks like, and what is easily written for one.
    unlike: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDerived {
    pattern: String,
}

/// Why a profile's text is not a profile.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProfileError {
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
    pub(super) fn parse(text: &str) -> Result<Profile, ProfileError> {
        let file: Self = toml::from_str(text)?;
        let mut profile = Profile {
            name: file.name,
            title: file.title,
            docs: file.docs,
            default_url: file.url,
            urls: file
                .urls
                .iter()
                .map(|url| Ok(UrlForm { form: whole(&url.form)?, shared: url.shared, hosted: url.hosted }))
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
            first: file.first,
            claims: Vec::new(),
            prefixes: Vec::new(),
            by_name: HashMap::default(),
            readers: HashMap::default(),
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
            owner_after: file.owner_after,
            form: file.form.as_deref().map(whole).transpose()?,
            unlike: file.unlike.as_deref().map(whole).transpose()?,
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
                    owner_after: None,
                    chars: None,
                    form: None,
                    unlike: None,
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
            .chain(self.first.iter().map(|ask| ("first", &ask.claim)))
            .chain(self.tenant_also.iter().map(|name| ("tenant_also", name)))
            .chain(reusable.map(|name| ("lint.reusable", name)))
            .chain(fork.map(|name| ("lint.fork", name)))
            .chain(ref_type.map(|name| ("lint.ref_type", name)))
            .chain(
                lint.run
                    .iter()
                    .chain(lint.catch_all.keys())
                    .chain(lint.apart.iter().flat_map(|group| &group.claims))
                    .chain(&lint.review_only)
                    .chain(lint.review_values.keys())
                    .map(|name| ("lint", name)),
            )
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
