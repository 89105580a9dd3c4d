//! The commands that say what policies let in, and why.

use super::{
    Answer,
    load::{Loaded, PolicyFiles, World, claims_of, text, token_payload},
    print::{self, print},
};
use crate::{
    admin::Admin,
    clock::{Clock as _, SystemClock},
};
use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use jobpass_policy::{
    Freezes, Issuer, Record, Request,
    diff::diff,
    explain::{Explanation, explain},
    fixtures::fixture,
    reach::{what_can, who_can},
    replay::replay,
    usage::usage,
};
use jobpass_protocol::{DecisionId, IssuerName};
use serde::Serialize;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fmt::Display,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Explain a decision.
#[derive(Args, Debug)]
pub struct ExplainFlags {
    /// The grant that is asked for.
    #[arg(required_unless_present_any = ["trace", "decision_id"])]
    grant: Option<String>,
    #[command(flatten)]
    files: PolicyFiles,
    /// A token's claims, as JSON; `-` is standard input.
    #[arg(long, value_name = "FILE", group = "from")]
    claims: Option<PathBuf>,
    /// A token. It is not verified: this asks the policies, not the server.
    #[arg(long, value_name = "FILE", group = "from")]
    token: Option<PathBuf>,
    /// A fixture: `policy fixtures` lists them.
    #[arg(long, value_name = "NAME", group = "from")]
    fixture: Option<String>,
    /// A denial's trace from the audit log (the entry or its trace, as JSON), instead of policies.
    #[arg(long, value_name = "FILE", group = "from", conflicts_with = "grant")]
    trace: Option<PathBuf>,
    /// A decision of a running server, by the id that the job was told: its socket is in the state directory
    /// of `--config`, or in `--state-dir`.
    #[arg(long, value_name = "ID", group = "from", conflicts_with = "grant")]
    decision_id: Option<DecisionId>,
    /// The server's state directory, instead of a config file.
    #[arg(long, value_name = "DIR", requires = "decision_id")]
    state_dir: Option<PathBuf>,
    /// A claim that is to be different; an empty value takes it away.
    #[arg(long, value_name = "CLAIM=VALUE")]
    set: Vec<String>,
    /// The issuer of the token, where its `iss` does not say.
    #[arg(long, value_name = "NAME")]
    issuer: Option<IssuerName>,
    /// A scope that is asked for.
    #[arg(long)]
    scope: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Who can have a grant.
#[derive(Args, Debug)]
pub struct WhoCanFlags {
    /// The grant.
    grant: String,
    #[command(flatten)]
    files: PolicyFiles,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What a job can have.
#[derive(Args, Debug)]
pub struct WhatCanFlags {
    /// What is known of the job: `repository_id=772002 ref=refs/heads/main`, a JSON object, or `@FILE` with one.
    claims: String,
    #[command(flatten)]
    files: PolicyFiles,
    /// The issuer of the token.
    #[arg(long, value_name = "NAME")]
    issuer: Option<IssuerName>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Compare two sets.
#[derive(Args, Debug)]
pub struct DiffFlags {
    /// The policies as they were: a file or a directory.
    old: PathBuf,
    /// The policies as they would be.
    new: PathBuf,
    #[command(flatten)]
    world: World,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Decide recorded exchanges again.
#[derive(Args, Debug)]
pub struct ReplayFlags {
    /// The audit log, as streamed.
    #[arg(long, value_name = "FILE")]
    audit: PathBuf,
    #[command(flatten)]
    files: PolicyFiles,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is used.
#[derive(Args, Debug)]
pub struct UsageFlags {
    /// The audit log, as streamed.
    #[arg(long, value_name = "FILE")]
    audit: PathBuf,
    #[command(flatten)]
    files: PolicyFiles,
    /// So many days without a use are worth a word.
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    unused_for: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run_explain(flags: &ExplainFlags) -> Answer {
    let explanation = match (&flags.trace, flags.decision_id, &flags.grant) {
        (Some(path), ..) => {
            let json: Value = serde_json::from_str(&text(path)?).with_context(|| path.display().to_string())?;
            Explanation::of_stored(&json).with_context(|| format!("{}: there is no decision in it", path.display()))?
        }
        (_, Some(id), _) => recorded(flags, id)?,
        (.., Some(grant)) => decided(flags, grant)?,
        (None, None, None) => bail!("name a grant"),
    };
    say(&explanation, flags.json)?;
    Ok(explanation.permitted)
}

/// A decision from a server's audit log: what came of it last, if it came to more than one entry.
fn recorded(flags: &ExplainFlags, id: DecisionId) -> anyhow::Result<Explanation> {
    let admin = Admin::of(&match &flags.state_dir {
        Some(directory) => directory.clone(),
        None => flags.files.state_dir()?,
    })?;
    let entries = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(admin.decision(id))?;
    let told = entries.iter().rev().find_map(Explanation::of_stored);
    told.with_context(|| format!("the audit log's entries of {id} are of no decision"))
}

fn decided(flags: &ExplainFlags, grant: &str) -> anyhow::Result<Explanation> {
    let loaded = flags.files.load()?;
    let mut payload = payload(flags)?;
    for set in &flags.set {
        let (claim, value) = set.split_once('=').with_context(|| format!("--set {set}: write it as CLAIM=VALUE"))?;
        match value {
            "" => drop(payload.remove(claim)),
            value => drop(payload.insert(claim.to_owned(), value.into())),
        }
    }
    let issuer = issuer_of(&loaded, flags, grant, &payload)?;
    let at = SystemClock.now().secs();
    let claims = Arc::new(claims_of(issuer, payload, at)?);
    if !issuer.admits(&claims) {
        bail!("the server refuses this token before it asks policy: its tenant is not one of {}", tenants(issuer));
    }
    let request = Request {
        grant,
        issuer: &issuer.name,
        claims: &claims,
        scope: (!flags.scope.is_empty()).then_some(&*flags.scope),
        ttl: None,
        at,
        freezes: &Freezes::NONE,
    };
    Ok(explain(&loaded.set, &request))
}

fn payload(flags: &ExplainFlags) -> anyhow::Result<Map<String, Value>> {
    let json = match (&flags.claims, &flags.token, &flags.fixture) {
        (Some(path), ..) => text(path)?,
        (_, Some(path), _) => token_payload(path)?,
        (_, _, Some(name)) => fixture(name)
            .with_context(|| format!("there is no fixture {name}; `policy fixtures` lists them"))?
            .to_owned(),
        (None, None, None) => bail!("say of which token: --claims, --token or --fixture"),
    };
    serde_json::from_str(&json).context("the claims are not a JSON object")
}

/// The issuer by its exact URL, else the only one that the grant speaks of and that the token can be from.
fn issuer_of<'a>(
    loaded: &'a Loaded,
    flags: &ExplainFlags,
    grant: &str,
    payload: &Map<String, Value>,
) -> anyhow::Result<&'a Issuer> {
    if let Some(name) = &flags.issuer {
        return loaded
            .issuers
            .iter()
            .find(|issuer| issuer.name == *name)
            .with_context(|| format!("there is no issuer {name}"));
    }
    let iss = payload.get("iss").and_then(Value::as_str);
    let rules = loaded.set.grant(grant).map(|grant| grant.rules()).unwrap_or_default();
    let named = |issuer: &&Issuer| rules.iter().any(|rule| rule.issuer() == &issuer.name);
    let mut exact: Vec<_> = loaded.issuers.iter().filter(|issuer| Some(&*issuer.url) == iss).collect();
    if exact.len() > 1 {
        exact.retain(named);
    }
    let possible =
        || loaded.issuers.iter().filter(named).filter(|issuer| iss.is_none_or(|iss| issuer.profile.url_matches(iss)));
    match (exact.as_slice(), possible().collect::<Vec<_>>().as_slice()) {
        ([one], _) | ([], [one]) => Ok(one),
        _ => Err(anyhow!("it is not clear which issuer the token is of: say it with --issuer NAME")),
    }
}

pub(super) fn run_who_can(flags: &WhoCanFlags) -> Answer {
    let loaded = flags.files.load()?;
    let unknown = || format!("there is no grant {}{}", flags.grant, loaded.set.did_you_mean(&flags.grant));
    let grant = loaded.set.grant(&flags.grant).with_context(unknown)?;
    say(&who_can(&loaded.set, grant), flags.json)?;
    let asked = |issuer: &&Issuer| grant.rules().iter().any(|rule| *rule.issuer() == issuer.name);
    for issuer in loaded.issuers.iter().filter(asked).filter(|issuer| !issuer.tenants.is_empty()) {
        writeln!(std::io::stderr().lock(), "note: the server refuses whose tenant is not one of {}", tenants(issuer))?;
    }
    Ok(true)
}

/// Whom the server's config lets ask at all.
fn tenants(issuer: &Issuer) -> String {
    let claim = issuer.profile.tenant_claim().unwrap_or("tenant");
    format!("issuer {}'s `tenants` ({claim} {})", issuer.name, issuer.tenants.join(", "))
}

pub(super) fn run_what_can(flags: &WhatCanFlags) -> Answer {
    let given = given(&flags.claims)?;
    let loaded = flags.files.load()?;
    let found = what_can(&loaded.set, flags.issuer.as_ref(), &given)?;
    if flags.json {
        print::json(&found)?;
    } else if found.is_empty() {
        print("nothing\n")?;
    } else {
        print(&found.iter().map(|possible| format!("{possible}\n")).collect::<String>())?;
    }
    Ok(!found.is_empty())
}

fn given(claims: &str) -> anyhow::Result<BTreeMap<String, Value>> {
    if let Some(path) = claims.strip_prefix('@') {
        return serde_json::from_str(&text(Path::new(path))?).with_context(|| path.to_owned());
    }
    if claims.trim_start().starts_with('{') {
        return serde_json::from_str(claims).context("the claims are not a JSON object");
    }
    let pair = |pair: &str| {
        let (claim, value) = pair.split_once('=').with_context(|| format!("{pair}: write it as CLAIM=VALUE"))?;
        Ok((claim.to_owned(), Value::from(value)))
    };
    claims.split_whitespace().map(pair).collect()
}

pub(super) fn run_diff(flags: &DiffFlags) -> Answer {
    let old = flags.world.load(std::slice::from_ref(&flags.old))?;
    let new = flags.world.load(std::slice::from_ref(&flags.new))?;
    let differences = diff(&old.set, &new.set);
    say(&differences, flags.json)?;
    Ok(differences.is_empty())
}

pub(super) fn run_replay(flags: &ReplayFlags) -> Answer {
    let loaded = flags.files.load()?;
    let replayed = replay(&loaded.set, &loaded.issuers, &records(&flags.audit)?);
    say(&replayed, flags.json)?;
    Ok(replayed.changes.is_empty() && replayed.undecidable.is_empty())
}

pub(super) fn run_usage(flags: &UsageFlags) -> Answer {
    let loaded = flags.files.load()?;
    let now = SystemClock.now().secs();
    say(&usage(&loaded.set, &records(&flags.audit)?, now, flags.unused_for), flags.json)?;
    Ok(true)
}

fn records(path: &Path) -> anyhow::Result<Vec<Record>> {
    let text = text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.map(|(n, line)| Record::parse(line).with_context(|| format!("{}:{}", path.display(), n + 1)));
    parsed.filter_map(Result::transpose).collect()
}

fn say<T: Display + Serialize>(said: &T, json: bool) -> std::io::Result<()> {
    if json { print::json(said) } else { print(&said.to_string()) }
}
