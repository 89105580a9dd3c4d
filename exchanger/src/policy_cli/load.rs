//! From paths to a compiled policy set: the only place that reads policy files offline.

use crate::{
    app,
    config::{Config, Env},
};
use anyhow::{Context as _, bail};
use clap::Args;
use jobpass_policy::{AnyCredential, Claims, ClaimsError, Compiled, Issuer, PolicySet, Profile, Source, compile};
use jobpass_protocol::{CompactJwt, IssuerName};
use serde_json::{Map, Value};
use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

/// Which policies.
#[derive(Args, Debug)]
pub(super) struct PolicyFiles {
    /// Grant files, and directories of them; the config's directories, or this one, if none is named.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    world: World,
}

/// What a server's configuration would say.
#[derive(Args, Debug)]
pub(super) struct World {
    /// The server's config: issuers and backends are its own, not those that the profiles assume.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// An issuer and the CI that it is of, where rules name it by another name than the CI's profile.
    #[arg(long = "assume", value_name = "NAME=PROFILE", value_parser = issuer)]
    assumed: Vec<Issuer>,
}

/// Policies, and what they were compiled against.
pub(super) struct Loaded {
    /// The grants.
    pub(super) set: PolicySet,
    /// The issuers that rules can name.
    pub(super) issuers: Vec<Issuer>,
    /// The files.
    pub(super) sources: Vec<Source>,
}

/// Policies as they came out, with their errors.
pub(super) struct Offline {
    pub(super) compiled: Compiled,
    pub(super) issuers: Vec<Issuer>,
    pub(super) sources: Vec<Source>,
    /// Whether the issuers are taken from the profiles, for want of a config.
    pub(super) assumes: bool,
}

impl PolicyFiles {
    /// Reads and compiles them.
    ///
    /// # Errors
    /// When a file cannot be read or does not compile.
    pub(super) fn load(&self) -> anyhow::Result<Loaded> {
        self.world.load(&self.paths)
    }
}

impl PolicyFiles {
    /// Reads and compiles them, errors and all.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn compile(&self) -> anyhow::Result<Offline> {
        self.world.compile(&self.paths)
    }
}

impl World {
    /// Reads and compiles these files and directories.
    ///
    /// # Errors
    /// When a file cannot be read or does not compile: the diagnostics go to standard error.
    pub(super) fn load(&self, paths: &[PathBuf]) -> anyhow::Result<Loaded> {
        let Offline { compiled, issuers, sources, .. } = self.compile(paths)?;
        let mut stderr = std::io::stderr().lock();
        for diagnostic in &compiled.diagnostics {
            writeln!(stderr, "{}", diagnostic.render(false))?;
        }
        if compiled.has_errors() {
            bail!("the policies have errors: the server would not load them");
        }
        Ok(Loaded { set: compiled.set, issuers, sources })
    }

    fn compile(&self, paths: &[PathBuf]) -> anyhow::Result<Offline> {
        let Some(config) = &self.config else {
            let here = [PathBuf::from(".")];
            let sources = read(if paths.is_empty() { &here } else { paths })?;
            let issuers = self.issuers();
            let compiled = compile(&sources, &issuers, &AnyCredential);
            return Ok(Offline { compiled, issuers, sources, assumes: true });
        };
        let config = Config::load(config, &Env::system())?;
        let (issuers, backends) = app::policy_world(&config)?;
        let sources = read(if paths.is_empty() { &config.policies } else { paths })?;
        let compiled = compile(&sources, &issuers, &backends);
        Ok(Offline { compiled, issuers, sources, assumes: false })
    }

    /// The issuers that rules can name.
    ///
    /// # Errors
    /// When there is a config, and it cannot be read.
    pub(super) fn known_issuers(&self) -> anyhow::Result<Vec<Issuer>> {
        match &self.config {
            None => Ok(self.issuers()),
            Some(config) => Ok(app::policy_world(&Config::load(config, &Env::system())?)?.0),
        }
    }

    /// The issuers named by flags, and for every profile the one of its name.
    fn issuers(&self) -> Vec<Issuer> {
        let mut issuers = self.assumed.clone();
        for profile in Profile::all() {
            let assumed = IssuerName::parse(profile.name()).ok().and_then(|name| Issuer::assumed(&name));
            issuers.extend(assumed.filter(|assumed| self.assumed.iter().all(|issuer| issuer.name != assumed.name)));
        }
        issuers
    }
}

fn issuer(text: &str) -> Result<Issuer, String> {
    let (name, profile) = text.split_once('=').ok_or("write it as NAME=PROFILE, for example acme-gitlab=gitlab")?;
    let name = IssuerName::parse(name).map_err(|error| error.to_string())?;
    let assumed = IssuerName::parse(profile).ok().and_then(|profile| Issuer::assumed(&profile));
    assumed.map(|issuer| Issuer { name, ..issuer }).ok_or_else(|| format!("there is no profile {profile}"))
}

/// Reads policy files; of directories, those in them and below them that are policies.
///
/// # Errors
/// When one cannot be read, or there are none.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        if path.is_dir() {
            find(path, &mut sources)?;
        } else {
            sources.push(source(path)?);
        }
    }
    if sources.is_empty() {
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        bail!("there is no grant file (*.yaml with `grant:`) in {}", paths.join(", "));
    }
    Ok(sources)
}

fn find(directory: &Path, sources: &mut Vec<Source>) -> anyhow::Result<()> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            find(&path, sources)?;
        } else if name.ends_with(".yaml") || name.ends_with(".yml") {
            let source = source(&path)?;
            if is_policy(&name, &source.text) {
                sources.push(source);
            } else {
                writeln!(std::io::stderr().lock(), "note: {} is passed over: it has no `grant:`", source.path)?;
            }
        }
    }
    Ok(())
}

/// Whether a file of a directory is a policy: a repository holds other YAML too.
fn is_policy(name: &str, text: &str) -> bool {
    let stem = name.trim_end_matches(".yml").trim_end_matches(".yaml");
    matches!(stem, "guards" | "scope")
        || stem.ends_with(".cases")
        || text.lines().any(|line| line.starts_with("grant:"))
}

fn source(path: &Path) -> anyhow::Result<Source> {
    Ok(Source { path: path.display().to_string(), text: text(path)? })
}

/// Reads a file, or standard input where its name is `-`.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub(super) fn text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().lock().read_to_string(&mut text).map(|_| text),
        false => fs::read_to_string(path),
    };
    read.with_context(|| path.display().to_string())
}

/// The payload of a token in a file. It is not verified.
///
/// # Errors
/// When it cannot be read or is no token.
pub(super) fn token_payload(path: &Path) -> anyhow::Result<String> {
    let token = text(path)?;
    Ok(String::from_utf8(CompactJwt::parse(token.trim())?.payload().to_vec())?)
}

/// Claims as a token of that issuer would have them: what every token has need not be there.
///
/// # Errors
/// When no such token could be.
pub(super) fn claims_of(issuer: &Issuer, mut payload: Map<String, Value>, at: i64) -> Result<Claims, ClaimsError> {
    for (claim, value) in [
        ("iss", issuer.url.clone().into()),
        ("aud", "".into()),
        ("iat", at.into()),
        ("exp", at.into()),
        ("jti", "".into()),
    ] {
        payload.entry(claim).or_insert(value);
    }
    Claims::parse(&issuer.profile, Value::Object(payload).to_string().as_bytes())
}
