//! `jobpass get`: a credential as a file, or as data on standard output.

use super::{LimitArgs, print, shown, sleep};
use crate::{
    deliver::{
        DeliverError, Given, documents,
        documents::field_or_document,
        environment_names,
        file::{self, Written},
        shell_lines, variables,
    },
    job::Job,
    mask::Masking,
};
use anyhow::{bail, ensure};
use jobpass_protocol::{GrantName, Secret};
use std::path::PathBuf;
use zeroize::Zeroizing;

#[derive(clap::Args)]
pub(super) struct GetArgs {
    /// The grant to ask for
    #[arg(long)]
    grant: GrantName,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    target: Target,
    /// One field's value, or a document made of several such as `pgpass`, without a line end
    #[arg(long, value_name = "NAME", conflicts_with = "format")]
    field: Option<String>,
    /// How to write the credential
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Print to standard output although nothing will hide it in the job's log
    #[arg(long, requires = "stdout")]
    unmasked: bool,
    /// Write the lease's handle to this file (0600); giving it back is then its reader's duty
    #[arg(long, value_name = "FILE")]
    handle_to: Option<PathBuf>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Write to this file (0600)
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Write to standard output
    #[arg(long)]
    stdout: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// The whole credential as a JSON object
    Json,
    /// NAME='value' lines for a shell
    Env,
    /// The bearer token alone, without a line end
    Token,
}

pub(super) fn run(args: &GetArgs, job: &Job) -> anyhow::Result<u8> {
    if args.target.stdout && !args.unmasked && job.source.masking() == Masking::None {
        bail!(
            "nothing hides secrets in this job's log while it runs, so `get --stdout` could print one there\n  \
             use `jobpass exec`, which hides them, or `get --to FILE`; \
             --unmasked says that the output goes to a program and not to the log"
        );
    }
    let mut leases = job.obtain(&[args.limits.ask(&args.grant)], &sleep)?;
    let Some(mut lease) = leases.pop() else { bail!("no credential was given") };
    let delivered = deliver(args, job, &lease.given).and_then(|written| {
        if written.is_some() {
            lease.held.file = written;
            job.session.remember(lease.held.clone())?;
        }
        if let (Some(to), Some(handle)) = (&args.handle_to, lease.held.handle()) {
            job.mask(&Secret::from(handle.expose()));
            file::write(to, handle.expose().as_bytes())?;
            job.session.forget(lease.held.lease)?;
        }
        Ok(())
    });
    if let Err(error) = delivered {
        job.give_back([lease.held]);
        return Err(error);
    }
    job.talk.say(&format!("{}: a credential for {} (lease {})", args.grant, shown(lease.expires_in), lease.held.lease));
    Ok(0)
}

/// Returns the file that holds the credential now.
fn deliver(args: &GetArgs, job: &Job, given: &Given) -> anyhow::Result<Option<Written>> {
    let text = contents(args, given)?;
    let Some(to) = &args.target.to else { return print(&text).map(|_| None) };
    let path = file::write(to, text.as_bytes())?;
    if job.source.workspace().and_then(|w| w.canonicalize().ok()).is_some_and(|workspace| path.starts_with(workspace)) {
        job.talk.warn(&format!(
            "{} lies in the job's workspace, from which artifacts, caches and images are made; \
             a directory outside of it is safer",
            path.display()
        ));
    }
    Ok(Some(Written::new(path, text.as_bytes())))
}

fn contents(args: &GetArgs, given: &Given) -> anyhow::Result<Zeroizing<String>> {
    let credential = &given.credential;
    if let Some(name) = &args.field {
        let value = field_or_document(credential, name);
        let known = || {
            let fields = credential.fields().iter().map(|field| field.name.as_str());
            fields.chain(documents::names(credential.kind()).iter().copied()).collect::<Vec<_>>().join(", ")
        };
        ensure!(value.is_some(), "--field {name}: the credential of grant `{}` has {}", given.grant, known());
        return Ok(Zeroizing::new(value.as_ref().map(Secret::expose).unwrap_or_default().to_owned()));
    }
    Ok(match args.format {
        Format::Json => Zeroizing::new(format!("{}\n", *credential.to_json())),
        Format::Env => Zeroizing::new(shell_lines(&variables(std::slice::from_ref(given), &[], &environment_names)?)),
        Format::Token => {
            let token = credential.bearer_token().ok_or_else(|| DeliverError::Kind {
                grant: given.grant.clone(),
                kind: credential.kind().to_owned(),
                wanted: "`--format token` is for bearer tokens; use --format json or --field",
            })?;
            Zeroizing::new(token.expose().to_owned())
        }
    })
}
