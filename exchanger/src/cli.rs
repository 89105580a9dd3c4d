//! The command line: flags to `Config` to `start()`, and the admin's commands.
//!
//! Standard output is data, standard error is talk. Exit codes: 0 done, 1 failed, 2 usage.

use crate::{
    admin::{Admin, lease_table},
    app,
    audit::verify,
    clock::SystemClock,
    config::{Config, Env},
    demo,
    http::admin::{FreezeRequest, FreezeView, Listing, NO_REASON, Selection},
    signing::Rotation,
    telemetry,
};
use anyhow::{Context as _, anyhow, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use jobpass_protocol::{GrantName, IssuerName, LeaseId};
use serde::Serialize;
use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

const DEFAULT_CONFIG: &str = "/etc/jobpass/jobpass-exchanger.yaml";

/// A pass for the job, not a key for the company: trades CI tokens for credentials that die with the job.
#[derive(Parser)]
#[command(name = "jobpass-exchanger", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server.
    Serve(ConfigFlag),
    /// Check a config and the policies that it names, and exit.
    CheckConfig(ConfigFlag),
    /// Try jobpass out on this machine: a server, a CI issuer and an API, all on loopback.
    Demo(DemoFlags),
    /// Work with policies, offline.
    #[command(subcommand)]
    Policy(crate::policy_cli::PolicyCommand),
    /// List, show and revoke leases of a running server.
    #[command(subcommand)]
    Leases(LeasesCommand),
    /// Stop issuing, at once and until thawed: everything, an issuer, or a grant.
    Freeze(FreezeFlags),
    /// Undo a freeze.
    Thaw(ThawFlags),
    /// List and rotate the keys that jobpass signs with.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Check the audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print the JSON Schema of the config file.
    Schema,
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Find edits, reorderings and deletions in a streamed audit log, offline.
    Verify {
        /// The log: JSON lines, rotated files joined in order.
        file: PathBuf,
        /// Signed heads that were kept elsewhere: with them a cut tail or a log written anew shows too.
        #[arg(long, value_name = "FILE")]
        head: Option<PathBuf>,
        /// The server's key set (/.well-known/jwks.json), to check the heads' signatures.
        #[arg(long, value_name = "FILE")]
        jwks: Option<PathBuf>,
    },
}

#[derive(Args)]
struct ConfigFlag {
    /// The config file.
    #[arg(long, env = "JOBPASS_CONFIG", default_value = DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,
}

/// How to reach a running server.
#[derive(Args)]
struct Reach {
    /// The config file of the server (for its state directory).
    #[arg(long, env = "JOBPASS_CONFIG", default_value = DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,
    /// The server's state directory, instead of a config file.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Reach {
    fn admin(&self) -> anyhow::Result<Admin> {
        match &self.state_dir {
            Some(directory) => Admin::of(directory),
            None => Admin::of(&Config::load(&self.config, &Env::system())?.state_dir),
        }
    }
}

#[derive(Args)]
struct DemoFlags {
    /// Do it once and exit: 0, or non-zero naming what failed.
    #[arg(long)]
    once: bool,
    /// The port of the server. Default 8420; with --once any that is free.
    #[arg(long)]
    port: Option<u16>,
}

#[derive(Args)]
struct Which {
    /// Leases by id.
    #[arg(value_name = "LEASE")]
    ids: Vec<LeaseId>,
    /// All leases of a grant.
    #[arg(long)]
    grant: Option<GrantName>,
    /// All leases of an issuer.
    #[arg(long)]
    issuer: Option<IssuerName>,
    /// All leases whose token had this claim (repeatable: all must fit).
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Which {
    fn selection(self) -> Selection {
        Selection { ids: self.ids, grant: self.grant, issuer: self.issuer, claims: self.claims, ..Selection::default() }
    }
}

pub(crate) fn claim(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE, for example repository_id=772002".to_owned()),
    }
}

#[derive(Subcommand)]
enum LeasesCommand {
    /// List leases that are not ended.
    List {
        #[command(flatten)]
        which: Which,
        /// Ended ones too.
        #[arg(long)]
        ended: bool,
        /// The most to list.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show one lease, whole.
    Show {
        /// Which.
        lease: LeaseId,
        #[command(flatten)]
        reach: Reach,
    },
    /// Take leases back, and close the sessions that asked for them.
    Revoke {
        #[command(flatten)]
        which: Which,
        /// All leases.
        #[arg(long)]
        all: bool,
        /// Only say which leases it would be.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Args)]
struct FreezeFlags {
    /// One issuer. Without it and without --grant: everything.
    #[arg(long, conflicts_with = "grant")]
    issuer: Option<IssuerName>,
    /// One grant.
    #[arg(long)]
    grant: Option<GrantName>,
    /// Why; jobs are not told, operators and the audit log are.
    #[arg(long)]
    reason: Option<String>,
    /// Only list what is frozen.
    #[arg(long, conflicts_with_all = ["issuer", "grant", "reason"])]
    list: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Args)]
struct ThawFlags {
    /// One issuer. Without it and without --grant: the freeze of everything.
    #[arg(long, conflicts_with = "grant")]
    issuer: Option<IssuerName>,
    /// One grant.
    #[arg(long)]
    grant: Option<GrantName>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// List them.
    List {
        #[command(flatten)]
        reach: Reach,
    },
    /// Make new ones. They are published at once, and sign once everybody can know them.
    Rotate {
        /// A key leaked: throw the old ones away and sign with new ones at once. Tokens that the old
        /// ones signed are refused as soon as their readers fetch the key set again.
        #[arg(long)]
        at_once: bool,
        /// Not those that sign, but those that seal what leases keep: read `sealing.keys` again, and seal
        /// everything anew with the first. After that the others can be removed there.
        #[arg(long, conflicts_with = "at_once")]
        sealing: bool,
        #[command(flatten)]
        reach: Reach,
    },
}

/// Runs the program.
#[must_use]
pub fn run() -> ExitCode {
    // Two providers may be linked (features are unified): name ours before anything signs or verifies.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    if let Command::Policy(command) = cli.command {
        return crate::policy_cli::run(command);
    }
    match blocking(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut stderr = std::io::stderr().lock();
            // Nothing is left to say it to if standard error is closed.
            let _ = writeln!(stderr, "{}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The whole chain of causes; an error that brings its own layout stays as it is.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some say their cause themselves.
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    if text.starts_with("error:") { text } else { format!("error: {text}") }
}

fn blocking(command: Command) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(dispatch(command))
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(flag) => serve(&flag.config).await,
        Command::CheckConfig(flag) => check_config(&flag.config),
        Command::Demo(flags) => demo::tour::run(flags.once, flags.port).await,
        Command::Leases(command) => leases(command).await,
        Command::Freeze(flags) => freeze(flags).await,
        Command::Thaw(flags) => {
            let request = FreezeRequest { issuer: flags.issuer, grant: flags.grant, reason: None };
            print_freezes(&flags.reach.admin()?.freeze(&request).await?)
        }
        Command::Keys(KeysCommand::List { reach }) => print_json(&reach.admin()?.keys().await?),
        Command::Keys(KeysCommand::Rotate { sealing: true, reach, .. }) => print_json(&reach.admin()?.reseal().await?),
        Command::Keys(KeysCommand::Rotate { at_once, reach, .. }) => {
            let rotation = if at_once { Rotation::AtOnce } else { Rotation::Overlapping };
            print_json(&reach.admin()?.rotate(rotation).await?)
        }
        Command::Audit(AuditCommand::Verify { file, head, jwks }) => {
            print(&verify::command(&file, head.as_deref(), jwks.as_deref())?)
        }
        Command::Schema => print_json(&schemars::schema_for!(crate::config::file::File)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "jobpass-exchanger", &mut std::io::stdout());
            Ok(())
        }
        Command::Version => print(&format!("jobpass-exchanger {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Policy(_) => bail!("policy commands run without a runtime"),
    }
}

async fn serve(path: &Path) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let env = Env::system();
    telemetry::log_to_stderr(env.var("JOBPASS_LOG"));
    let config = Config::load(path, &env)?;
    app::prepare_state_dir(&config.state_dir)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let running = app::start(config, Arc::new(SystemClock)).await?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => running.reload().await,
        }
    }
    running.stop().await;
    Ok(())
}

fn check_config(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path, &Env::system())?;
    let report = app::check(&config)?;
    let mut out = String::new();
    for diagnostic in &report.diagnostics {
        let _ = writeln!(out, "{diagnostic}");
    }
    print(&out)?;
    if report.errors > 0 {
        bail!("{} of the policies' diagnostics are errors: the server would not load them", report.errors);
    }
    print(&format!("{}: ok (grants: {})\n", path.display(), report.grants))
}

async fn leases(command: LeasesCommand) -> anyhow::Result<()> {
    match command {
        LeasesCommand::List { which, ended, limit, reach } => {
            let json = which.json;
            let selection = which.selection();
            let all = selection.ids.is_empty();
            let listed = reach.admin()?.leases(&Selection { all, ended, limit: Some(limit), ..selection }).await?;
            print_leases(&listed, json)
        }
        LeasesCommand::Show { lease, reach } => {
            let selection = Selection { ids: vec![lease], ..Selection::default() };
            print_leases(&reach.admin()?.leases(&selection).await?, true)
        }
        LeasesCommand::Revoke { which, all, dry_run, reach } => {
            let json = which.json;
            let selection = Selection { all, dry_run, ..which.selection() };
            let named = selection.all
                || !selection.ids.is_empty()
                || selection.grant.is_some()
                || selection.issuer.is_some()
                || !selection.claims.is_empty();
            if !named {
                bail!("say which leases: ids, --grant, --issuer, --claim NAME=VALUE, or --all");
            }
            let revoked = reach.admin()?.revoke(&selection).await?;
            print_leases(&revoked, json)
        }
    }
}

/// What was not recorded is a failure, after all that there is to see.
fn print_leases(listing: &Listing, json: bool) -> anyhow::Result<()> {
    if json {
        print_json(&listing.leases)?
    } else {
        print(&lease_table(&listing.leases))?
    }
    if let Some(text) = &listing.left_out {
        // Nothing is left to say it to if standard error is closed.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    note(listing.note.as_deref());
    recorded(listing.unrecorded.as_deref())
}

fn note(text: Option<&str>) {
    if let Some(text) = text {
        // Nothing is left to say it to if standard error is closed.
        let _ = writeln!(std::io::stderr(), "note: {text}");
    }
}

fn recorded(unrecorded: Option<&str>) -> anyhow::Result<()> {
    unrecorded.map_or(Ok(()), |why| Err(anyhow!("{why}")))
}

async fn freeze(flags: FreezeFlags) -> anyhow::Result<()> {
    let admin = flags.reach.admin()?;
    if flags.list {
        return print_freezes(&admin.freezes().await?);
    }
    let reason = flags.reason.filter(|reason| !reason.trim().is_empty()).context(NO_REASON)?;
    let request = FreezeRequest { issuer: flags.issuer, grant: flags.grant, reason: Some(reason) };
    print_freezes(&admin.freeze(&request).await?)
}

fn print_freezes(view: &FreezeView) -> anyhow::Result<()> {
    let mut out = String::new();
    if let Some(reason) = &view.all {
        let _ = writeln!(out, "everything: {reason}");
    }
    for (name, reason) in &view.issuers {
        let _ = writeln!(out, "issuer {name}: {reason}");
    }
    for (name, reason) in &view.grants {
        let _ = writeln!(out, "grant {name}: {reason}");
    }
    print(if out.is_empty() { "nothing is frozen\n" } else { &out })?;
    note(view.note.as_deref());
    recorded(view.unrecorded.as_deref())
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
