//! From paths to a compiled policy set: the only place that reads policy files offline.

use anyhow::{Context as _, bail};
use clap::Args;
use jobpass_policy::{AnyCredential, Issuer, PolicySet, Profile, Source, compile};
use jobpass_protocol::IssuerName;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

/// Which policies.
#[derive(Args, Debug)]
pub struct PolicyFiles {
    /// Grant files, and directories of them.
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    world: World,
}

/// What a server's configuration would say.
#[derive(Args, Debug)]
pub struct World {
    /// An issuer and the CI that it is of, where rules name it by another name than the CI's profile.
    #[arg(long = "issuer", value_name = "NAME=PROFILE", value_parser = issuer)]
    issuers: Vec<Issuer>,
}

/// Policies, and what they were read from.
pub struct Loaded {
    /// The grants.
    pub set: PolicySet,
    /// The issuers that rules can name.
    pub issuers: Vec<Issuer>,
}

impl PolicyFiles {
    /// Reads and compiles them.
    ///
    /// # Errors
    /// When a file cannot be read or does not compile.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        self.world.load(&self.paths)
    }
}

impl World {
    /// Reads and compiles these files and directories.
    ///
    /// # Errors
    /// When a file cannot be read or does not compile: the diagnostics go to standard error.
    pub fn load(&self, paths: &[PathBuf]) -> anyhow::Result<Loaded> {
        let sources = read(paths)?;
        let issuers = self.issuers();
        let compiled = compile(&sources, &issuers, &AnyCredential);
        let mut stderr = std::io::stderr().lock();
        for diagnostic in &compiled.diagnostics {
            writeln!(stderr, "{}", diagnostic.render(false))?;
        }
        if compiled.has_errors() {
            bail!("the policies have errors: the server would not load them");
        }
        Ok(Loaded { set: compiled.set, issuers })
    }

    /// The issuers named by flags, and for every profile the one of its name.
    fn issuers(&self) -> Vec<Issuer> {
        let mut issuers = self.issuers.clone();
        for profile in Profile::all() {
            let assumed = IssuerName::parse(profile.name()).ok().and_then(|name| Issuer::assumed(&name));
            issuers.extend(assumed.filter(|assumed| self.issuers.iter().all(|issuer| issuer.name != assumed.name)));
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

/// Reads policy files; directories with those below them, in the order of their names.
///
/// # Errors
/// When one cannot be read, or there are none.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            find(path, &mut files).with_context(|| path.display().to_string())?
        } else {
            files.push(path.clone())
        }
    }
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Source { path: path.display().to_string(), text })
    };
    let sources: Vec<Source> = files.iter().map(read).collect::<anyhow::Result<_>>()?;
    if sources.is_empty() {
        bail!(
            "there is no grant file (*.yaml) in {}",
            paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(sources)
}

fn find(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries =
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    entries.sort();
    for path in entries {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            find(&path, files)?;
        } else if (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.ends_with(".cases.yaml") {
            files.push(path);
        }
    }
    Ok(())
}
