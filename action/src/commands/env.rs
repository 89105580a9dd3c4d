//! `jobpass env`: credentials for the job's later steps.

use super::{AskArgs, print, shown, sleep};
use crate::{
    deliver::{DefaultNames, Given, environment_names, github, variables},
    job::Job,
};

#[derive(clap::Args)]
pub(super) struct EnvArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// As outputs of this step, named like the fields, instead of variables for all later steps
    #[arg(long)]
    output: bool,
    /// Print what was set, without the values, as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &EnvArgs, job: &Job) -> anyhow::Result<u8> {
    let (target, names): (_, DefaultNames<'_>) = if args.output {
        ("GITHUB_OUTPUT", &|_, field| vec![field.to_owned()])
    } else {
        ("GITHUB_ENV", &environment_names)
    };
    anyhow::ensure!(
        job.env.path(target).is_some(),
        "{target} is not set: only GitHub Actions hands variables to later steps\n  \
         elsewhere use `jobpass exec`, or `jobpass get --format env --to FILE` and read that file"
    );
    let leases = job.obtain(&args.ask.asks(), &sleep)?;
    let (mut given, mut held, mut lives) = (Vec::<Given>::new(), Vec::new(), Vec::new());
    for lease in leases {
        lives.push((lease.held.lease, lease.expires_in));
        held.push(lease.held);
        given.push(lease.given);
    }
    let written = variables(&given, &args.ask.renames, names)
        .and_then(|values| github::append(job.env.path(target), target, &values).map(|()| values));
    let values = match written {
        Ok(values) => values,
        Err(error) => {
            job.give_back(held);
            return Err(error.into());
        }
    };
    let set: Vec<&str> = values.iter().map(|value| value.name.as_str()).collect();
    for (given, (lease, expires_in)) in given.iter().zip(&lives) {
        job.talk.say(&format!("{}: a credential for {} (lease {lease})", given.grant, shown(*expires_in)));
    }
    job.talk.say(&format!("{target} now sets {}", set.join(", ")));
    if !args.json {
        return Ok(0);
    }
    let leases: Vec<_> = given
        .iter()
        .zip(&lives)
        .map(|(given, (lease, expires_in))| {
            serde_json::json!({ "grant": given.grant, "lease_id": lease, "expires_in": expires_in })
        })
        .collect();
    print(&format!("{}\n", serde_json::json!({ "variables": set, "leases": leases })))
}
