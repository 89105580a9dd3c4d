//! `jobpass`, the job-side CLI: finds the CI that it runs in, trades the job's token for a credential,
//! hides it, hands it over and gives it back. Links the protocol crate only, never the server.

mod agent;
mod certified;
mod client;
mod commands;
mod deliver;
mod env;
mod exec;
mod job;
mod mask;
mod outbound;
mod redact;
mod session;
mod signals;
mod sources;
mod talk;

use clap::Parser as _;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::process::ExitCode;

fn main() -> ExitCode {
    // What is in here is not for other processes of this user, such as the command of `exec`, nor for a core file.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let env = env::Env::of_process();
    let cli = match commands::Cli::try_parse_from(commands::arguments(std::env::args_os())) {
        Ok(cli) => cli,
        Err(usage) => {
            let code = if usage.use_stderr() { commands::usage_exit_code() } else { 0 };
            let _ = usage.print();
            return ExitCode::from(code);
        }
    };
    ExitCode::from(commands::run(cli, env))
}
