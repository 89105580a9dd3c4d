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
    /// Reads and compiles them, set by set.
    ///
    /// # Errors
    /// When a file cannot be read or does not compile.
    pub(super) fn load_sets(&self) -> anyhow::Result<Vec<Loaded>> {
        self.world.load_sets(&self.paths)
    }

    /// Reads and compiles them, set by set, errors and all.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn compile(&self) -> anyhow::Result<Vec<Offline>> {
        self.world.compile(&self.paths)
    }
}

impl PolicyFiles {
    /// Where the state of the server is whose config is named.
    ///
    /// # Errors
    /// When none is named, or it cannot be read.
    pub(super) fn state_dir(&self) -> anyhow::Result<PathBuf> {
        let config = self.world.config.as_deref().context("say which server: --config FILE or --state-dir DIR")?;
        Ok(Config::load(config, &Env::system())?.state_dir)
    }
}

impl World {
    /// Reads and compiles these files and directories.
    ///
    /// # Errors
    /// When a file cannot be read or does not compile: the diagnostics go to standard error.
    pub(super) fn load(&self, paths: &[PathBuf]) -> anyhow::Result<Loaded> {
        let mut sets = self.load_sets(paths)?;
        match (sets.pop(), sets.is_empty()) {
            (Some(loaded), true) => Ok(loaded),
            _ => bail!("these are the policies of several servers: name the directory of one"),
        }
    }

    fn load_sets(&self, paths: &[PathBuf]) -> anyhow::Result<Vec<Loaded>> {
        let (mut loaded, mut broken) = (Vec::new(), false);
        let mut stderr = std::io::stderr().lock();
        for Offline { compiled, issuers, sources, .. } in self.compile(paths)? {
            for diagnostic in &compiled.diagnostics {
                writeln!(stderr, "{}", diagnostic.render(false))?;
            }
            broken |= compiled.has_errors();
            loaded.push(Loaded { set: compiled.set, issuers, sources });
        }
        if broken {
            bail!("the policies have errors: the server would not load them");
        }
        Ok(loaded)
    }

    /// Reads and compiles these files and directories, set by set.
    fn compile(&self, paths: &[PathBuf]) -> anyhow::Result<Vec<Offline>> {
        let Some(config) = &self.config else {
            let here = [PathBuf::from(".")];
            let sets = read_sets(if paths.is_empty() { &here } else { paths })?;
            let compiled = sets.into_iter().map(|sources| {
                let issuers = self.issuers();
                let compiled = compile(&sources, &issuers, &AnyCredential);
                Offline { compiled, issuers, sources, assumes: true }
            });
            return Ok(compiled.collect());
        };
        let config = Config::load(config, &Env::system())?;
        let (issuers, backends) = app::policy_world(&config)?;
        let sources = if paths.is_empty() { read_served(&config.policies) } else { read(paths) }?;
        let compiled = compile(&sources, &issuers, &backends);
        Ok(vec![Offline { compiled, issuers, sources, assumes: false }])
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

/// Reads policy files; of directories, those in them and below them that are policies. They are one set, but
/// for directories that hold a server's config: what is in one and below it is a set of its own.
///
/// # Errors
/// When one cannot be read, or there are none.
fn read_sets(paths: &[PathBuf]) -> anyhow::Result<Vec<Vec<Source>>> {
    let mut sets = vec![Vec::new()];
    for path in paths {
        if path.is_dir() {
            find(path, 0, &mut sets)?;
        } else {
            sets[0].push(source(path)?);
        }
    }
    sets.retain(|set| !set.is_empty());
    if sets.is_empty() {
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        bail!("there is no grant file (*.yaml with `grant:`) in {}", paths.join(", "));
    }
    Ok(sets)
}

/// As [`read_sets`], all as one set.
fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    Ok(read_sets(paths)?.into_iter().flatten().collect())
}

/// What a server reads: every file of its directories, and none below them. And their cases.
///
/// # Errors
/// When one cannot be read.
fn read_served(directories: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for directory in directories {
        for path in entries(directory)?.iter().filter(|path| is_yaml(path)) {
            sources.push(source(path)?);
        }
    }
    Ok(sources)
}

fn entries(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

fn find(directory: &Path, set: usize, sets: &mut Vec<Vec<Source>>) -> anyhow::Result<()> {
    let paths = entries(directory)?;
    let mut files = Vec::new();
    for path in paths.iter().filter(|path| is_yaml(path)) {
        files.push(source(path)?);
    }
    let set = if files.iter().any(|file| has_keys(&file.text, &["public_url", "issuers", "policies"], 3)) {
        sets.push(Vec::new());
        sets.len() - 1
    } else {
        set
    };
    for file in files {
        if is_policy(&file) {
            sets[set].push(file);
        } else {
            writeln!(std::io::stderr().lock(), "note: {} is passed over: it is no policy", file.path)?;
        }
    }
    for path in paths {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() && !name.starts_with('.') {
            find(&path, set, sets)?;
        }
    }
    Ok(())
}

fn is_yaml(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !hidden && path.is_file() && path.extension().is_some_and(|end| end == "yaml" || end == "yml")
}

/// Whether a file of a directory is a policy: a repository holds other YAML too. A file with a misspelt
/// `grant:` or in a misnamed `guards.yaml` is one, so that its mistake is found and not passed over.
fn is_policy(file: &Source) -> bool {
    let name = file.path.rsplit('/').next().unwrap_or(&file.path);
    let stem = name.trim_end_matches(".yml").trim_end_matches(".yaml");
    matches!(stem, "guards" | "scope")
        || stem.ends_with(".cases")
        || has_keys(&file.text, &["grant"], 1)
        || has_keys(&file.text, &["owner", "review_by", "backend", "credential", "ttl", "rules", "tests"], 2)
        || has_keys(&file.text, &["forbid", "ceilings", "require", "closed", "deny_overdue_review"], 1)
}

/// Whether a YAML mapping has so many of these keys.
fn has_keys(text: &str, keys: &[&str], least: usize) -> bool {
    let is_there = |key: &&&str| text.lines().any(|line| line.strip_prefix(**key).is_some_and(|l| l.starts_with(':')));
    keys.iter().filter(is_there).count() >= least
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
