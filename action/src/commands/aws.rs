//! `jobpass aws-credential-process`: for `credential_process` in AWS's configuration files.

use super::{LimitArgs, print, sleep};
use crate::{deliver::aws::credential_process, job::Job};
use anyhow::bail;
use jobpass_protocol::GrantName;

#[derive(clap::Args)]
pub(super) struct AwsArgs {
    /// The grant to ask for
    #[arg(long)]
    grant: GrantName,
    #[command(flatten)]
    limits: LimitArgs,
}

pub(super) fn run(args: &AwsArgs, job: &Job) -> anyhow::Result<u8> {
    let mut leases = job.obtain(&[args.limits.ask(&args.grant)], &sleep)?;
    let Some(lease) = leases.pop() else { bail!("no credential was given") };
    match credential_process(&lease.given) {
        Ok(document) => print(&document),
        Err(error) => {
            job.give_back([lease.held], &sleep);
            Err(error.into())
        }
    }
}
