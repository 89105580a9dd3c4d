//! The command line: one file per command, and what they share.

mod env;
mod exec;
mod get;
mod helper;
mod revoke;

use crate::{
    client::{Ask, ServerUrl},
    deliver::Rename,
    env::Env,
    exec::EXIT_OWN_FAILURE,
    job::{Job, signal_of},
    talk::Talk,
};
use anyhow::{Context as _, anyhow};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use jobpass_protocol::GrantName;
use std::{ffi::OsString, io::Write as _, path::Path, thread, time::Duration};

const EXIT_FAILURE: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// A pass for the job, not a key for the company: trades this CI job's own token for a short-lived credential.
#[derive(Parser)]
#[command(name = "jobpass", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The server's public URL [default: $JOBPASS_URL]
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// Seconds until jobpass gives up asking [default: $JOBPASS_TIMEOUT, or 60]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: Option<u64>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command with credentials in its environment; hide them in its output; give them back when it ends
    Exec(exec::ExecArgs),
    /// Write a credential to a file or to standard output
    Get(get::GetArgs),
    /// Hand credentials to the job's later steps (GITHUB_ENV or GITHUB_OUTPUT)
    Env(env::EnvArgs),
    /// Be the `credential_process` of AWS's tools
    AwsCredentialProcess(helper::HelperArgs),
    /// Be the exec plugin of `kubectl` and other Kubernetes clients
    KubectlCredential(helper::HelperArgs),
    /// Be the executable source of Google's client libraries
    GoogleCredential(helper::HelperArgs),
    /// Be git's credential helper for one host
    GitCredential(helper::GitArgs),
    /// Be docker's credential helper, also under the name `docker-credential-jobpass`; JOBPASS_DOCKER_GRANTS says
    /// which grant is for which registry: HOST=GRANT ...
    DockerCredential(helper::DockerArgs),
    /// Give back every credential that this job still holds
    Revoke(revoke::RevokeArgs),
    /// Print the version
    Version {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// What to ask for.
#[derive(Args)]
struct AskArgs {
    /// The grant to ask for; several times for several credentials
    #[arg(long = "grant", value_name = "NAME", required = true)]
    grants: Vec<GrantName>,
    #[command(flatten)]
    limits: LimitArgs,
    /// Hand a field over under another name: NAME=field, or NAME=grant.field
    #[arg(long = "env", value_name = "NAME=FIELD")]
    renames: Vec<Rename>,
}

/// How to narrow what is asked for.
#[derive(Args)]
struct LimitArgs {
    /// A shorter life than the grant's own: seconds, or such as 90s, 15m, 1h
    #[arg(long, value_parser = seconds)]
    ttl: Option<u32>,
    /// Less than the grant's own scope: names separated by spaces
    #[arg(long)]
    scope: Option<String>,
}

impl LimitArgs {
    fn ask(&self, grant: &GrantName) -> Ask {
        Ask { grant: grant.clone(), ttl: self.ttl, scope: self.scope.clone(), public_key: None, csr: None }
    }
}

impl AskArgs {
    fn asks(&self) -> Vec<Ask> {
        self.grants.iter().map(|grant| self.limits.ask(grant)).collect()
    }
}

/// The command line, also where docker calls this program under the name that docker gives to helpers.
pub(crate) fn arguments(mut line: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let program = line.next().unwrap_or_default();
    let helper = Path::new(&program).file_name().is_some_and(|name| name == "docker-credential-jobpass");
    let command = helper.then(|| OsString::from("docker-credential"));
    [program].into_iter().chain(command).chain(line).collect()
}

/// The exit code for a command line that is not understood.
pub(crate) fn usage_exit_code() -> u8 {
    if std::env::args_os().nth(1).is_some_and(|first| first == "exec") { EXIT_OWN_FAILURE } else { EXIT_USAGE }
}

/// Runs a command; every failure has been told when this returns.
pub(crate) fn run(cli: Cli, env: Env) -> u8 {
    let talk = Talk::of(&env);
    let own_failure = if matches!(cli.command, Command::Exec(_)) { EXIT_OWN_FAILURE } else { EXIT_FAILURE };
    dispatch(cli, env, talk).unwrap_or_else(|error| {
        talk.fail(&format!("{error:#}"));
        signal_of(&error).and_then(|signal| u8::try_from(128 + signal).ok()).unwrap_or(own_failure)
    })
}

fn dispatch(cli: Cli, env: Env, talk: Talk) -> anyhow::Result<u8> {
    let settings = Settings { url: cli.url, timeout: cli.timeout, talk };
    match cli.command {
        Command::Exec(args) => exec::run(args, settings.job(env)?),
        Command::Get(args) => get::run(&args, &settings.job(env)?),
        Command::Env(args) => env::run(&args, &settings.job(env)?),
        Command::AwsCredentialProcess(args) => helper::aws(&args, &settings.job(env)?),
        Command::KubectlCredential(args) => helper::kubectl(&args, &settings.job(env)?),
        Command::GoogleCredential(args) => helper::google(&args, &settings.job(env)?),
        Command::GitCredential(args) => helper::git(&args, || settings.job(env)),
        Command::DockerCredential(args) => helper::docker(&args, &env.clone(), || settings.job(env)),
        Command::Revoke(args) => revoke::run(&args, &settings, env),
        Command::Version { json } => {
            let version = env!("CARGO_PKG_VERSION");
            print(&if json { format!("{{\"version\":\"{version}\"}}\n") } else { format!("jobpass {version}\n") })
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "jobpass", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// What the command line says beyond the command.
struct Settings {
    url: Option<String>,
    timeout: Option<u64>,
    talk: Talk,
}

impl Settings {
    fn url(&self, env: &Env) -> anyhow::Result<ServerUrl> {
        let (name, text) = match &self.url {
            Some(url) => ("--url", url.as_str()),
            None => (
                "JOBPASS_URL",
                env.text("JOBPASS_URL")
                    .context("JOBPASS_URL is not set: set it, or --url, to the server's public_url")?,
            ),
        };
        ServerUrl::parse(text).map_err(|problem| anyhow!("{name} {problem}"))
    }

    fn deadline(&self, env: &Env) -> anyhow::Result<Duration> {
        let named = env.text("JOBPASS_TIMEOUT").map(|text| text.parse().ok().filter(|s| (1..=600).contains(s)));
        let named = named.map(|seconds| seconds.context("JOBPASS_TIMEOUT must be a number of seconds, 1 to 600"));
        Ok(Duration::from_secs(match self.timeout {
            Some(seconds) => seconds,
            None => named.transpose()?.unwrap_or(60),
        }))
    }

    fn job(&self, env: Env) -> anyhow::Result<Job> {
        let (url, deadline) = (self.url(&env)?, self.deadline(&env)?);
        Job::new(env, self.talk, url, deadline)
    }
}

/// Data for whoever called.
fn print(text: &str) -> anyhow::Result<u8> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("standard output cannot be written")?;
    Ok(0)
}

/// Waits; a signal ends the whole program meanwhile.
fn sleep(time: Duration) -> Option<i32> {
    thread::sleep(time);
    None
}

fn seconds(text: &str) -> Result<u32, &'static str> {
    let (number, unit) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        _ => (text, 1),
    };
    let digits = number.bytes().all(|b| b.is_ascii_digit());
    let number: Option<u32> = number.parse().ok().filter(|number| digits && *number > 0);
    number.and_then(|number| number.checked_mul(unit)).ok_or("must be a number of seconds, or such as 90s, 15m, 1h")
}

/// A lifetime for people, rounded.
fn shown(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", (seconds + 30) / 60),
        _ => format!("{}h", (seconds + 1800) / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lifetimes() {
        for (text, expected) in [
            ("900", Some(900)),
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("1h", Some(3600)),
            ("0", None),
            ("-1", None),
            ("+1", None),
            ("1d", None),
            ("m", None),
            ("", None),
            ("2000000h", None),
        ] {
            assert_eq!(seconds(text).ok(), expected, "{text:?}");
        }
    }
}
