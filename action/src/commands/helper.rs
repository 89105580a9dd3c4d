//! Commands that other programs call for a credential: one exchange, and the document that the program reads.

use super::{LimitArgs, print, sleep};
use crate::{
    deliver::{DeliverError, Given, aws, docker, git, google, kubectl},
    env::Env,
    job::Job,
    talk::hush,
};
use anyhow::{Context as _, bail};
use jobpass_protocol::GrantName;
use std::io::Read as _;
use zeroize::Zeroizing;

/// No program says more about what it wants.
const MAX_INPUT: u64 = 64 * 1024;

#[derive(clap::Args)]
pub(super) struct HelperArgs {
    /// The grant to ask for
    #[arg(long)]
    grant: GrantName,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(clap::Args)]
pub(super) struct GitArgs {
    #[command(flatten)]
    helper: HelperArgs,
    /// The host that the credential is for, and the only one that it is given to: host or host:port
    #[arg(long)]
    host: String,
    /// The user's name, where the credential has none
    #[arg(long, default_value = "x-access-token")]
    username: String,
    /// What git wants; jobpass stores nothing, so it answers to `get` only
    operation: String,
}

#[derive(clap::Args)]
pub(super) struct DockerArgs {
    /// What docker wants: get, list, store or erase
    operation: String,
}

pub(super) fn aws(args: &HelperArgs, job: &Job) -> anyhow::Result<u8> {
    answer(args, job, |given, _| aws::credential_process(given))
}

pub(super) fn google(args: &HelperArgs, job: &Job) -> anyhow::Result<u8> {
    // Google's libraries read both outputs as one (google-auth, `pluggable.py`), and show neither.
    hush();
    answer(args, job, google::executable_response)
}

pub(super) fn kubectl(args: &HelperArgs, job: &Job) -> anyhow::Result<u8> {
    let version = kubectl::wanted_version(job.env.text("KUBERNETES_EXEC_INFO"))?;
    answer(args, job, |given, _| kubectl::exec_credential(given, version))
}

pub(super) fn git(args: &GitArgs, job: impl FnOnce() -> anyhow::Result<Job>) -> anyhow::Result<u8> {
    let wanted = input()?;
    // Anything else is another helper's work, or nobody's: git goes on without an answer.
    if args.operation != "get" || !git::is_for(&wanted, &args.host) {
        return Ok(0);
    }
    answer(&args.helper, &job()?, |given, until| git::answer(given, &args.username, until))
}

pub(super) fn docker(args: &DockerArgs, env: &Env, job: impl FnOnce() -> anyhow::Result<Job>) -> anyhow::Result<u8> {
    let grants = docker::Grants::parse(env.text(docker::GRANTS).unwrap_or_default())?;
    match args.operation.as_str() {
        "list" => print(&grants.list()),
        "erase" => Ok(0),
        "store" => bail!("jobpass stores no credentials: it asks for one whenever one is needed"),
        "get" => {
            let server = input()?;
            let Some(grant) = grants.of(server.trim()) else {
                // What docker takes for "there is none" (docker-credential-helpers, `credentials`).
                print("credentials not found in native keychain\n")?;
                return Ok(1);
            };
            let helper = HelperArgs { grant: grant.clone(), limits: LimitArgs { ttl: None, scope: None } };
            answer(&helper, &job()?, |given, _| docker::answer(given, server.trim()))
        }
        other => bail!("`{other}` is not what docker asks of a credential helper: get, list, store or erase"),
    }
}

/// One exchange; `document` makes the answer of the credential and of the seconds that it lives.
fn answer(
    args: &HelperArgs,
    job: &Job,
    document: impl FnOnce(&Given, u64) -> Result<Zeroizing<String>, DeliverError>,
) -> anyhow::Result<u8> {
    let mut leases = job.obtain(&[args.limits.ask(&args.grant)], &sleep)?;
    let Some(lease) = leases.pop() else { bail!("no credential was given") };
    match document(&lease.given, lease.expires_in) {
        Ok(document) => print(&document),
        Err(error) => {
            job.give_back([lease.held]);
            Err(error.into())
        }
    }
}

fn input() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().take(MAX_INPUT).read_to_string(&mut text).context("standard input cannot be read")?;
    Ok(text)
}
