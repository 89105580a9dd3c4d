//! `jobpass revoke`: the job's end. Tries every lease, tells each failure, and fails if any failed.

use super::{EXIT_FAILURE, Settings, print, sleep};
use crate::{client::Client, env::Env, outbound::Outbound};
use anyhow::Context as _;
use jobpass_protocol::{LeaseHandle, LeaseState, RevokeResponse};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

#[derive(clap::Args)]
pub(super) struct RevokeArgs {
    /// Give back the one lease whose handle this file holds, as `get --handle-to` wrote it
    #[arg(long, value_name = "FILE")]
    handle_file: Option<PathBuf>,
    /// Print what became of each lease, as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RevokeArgs, settings: &Settings, env: Env) -> anyhow::Result<u8> {
    if let Some(path) = &args.handle_file {
        let handle = read_handle(path)?;
        let (url, deadline, outbound) = (settings.url(&env)?, settings.deadline(&env)?, Outbound::new(&env));
        let answer = Client { outbound: &outbound, url: &url, deadline, pause: &sleep }.revoke(&handle)?;
        settings.talk.say(&format!("lease {}: {}", handle.lease(), told(&answer)));
        return if args.json { print(&format!("{}\n", serde_json::json!([answer]))) } else { Ok(0) };
    }
    let job = settings.job(env)?;
    let returned = job.give_back(job.session.leases()?);
    job.end_session()?;
    let answered = returned.iter().filter_map(|r| Some((&r.held, r.result.as_ref().ok()?)));
    // Those that cannot be taken back were told of, with the time that they have left.
    for (held, answer) in answered.filter(|(_, answer)| answer.state != Some(LeaseState::Outliving)) {
        job.talk.say(&format!("{}: lease {}: {}", held.grant, held.lease, told(answer)));
    }
    if args.json {
        let leases = returned.iter().map(|returned| {
            let (answer, error) = (returned.result.as_ref().ok(), returned.result.as_ref().err());
            serde_json::json!({
                "grant": returned.held.grant,
                "lease_id": returned.held.lease,
                "state": answer.and_then(|answer| answer.state),
                "until": answer.and_then(|answer| answer.until),
                "error": error,
            })
        });
        print(&format!("{}\n", leases.collect::<serde_json::Value>()))?;
    } else if returned.is_empty() {
        job.talk.say("this job holds no credentials");
    }
    Ok(if returned.iter().any(|returned| returned.result.is_err()) { EXIT_FAILURE } else { 0 })
}

fn read_handle(path: &Path) -> anyhow::Result<LeaseHandle> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.with_context(|| format!("{} cannot be read", path.display()))?;
    LeaseHandle::parse(text.trim()).with_context(|| format!("{} does not hold a lease handle", path.display()))
}

fn told(answer: &RevokeResponse) -> &'static str {
    match answer.state {
        Some(LeaseState::Ended) => "ended",
        Some(LeaseState::Revoking) => "being revoked",
        Some(LeaseState::Outliving) => "cannot be revoked, ends by itself",
        None => "unknown to the server",
    }
}
