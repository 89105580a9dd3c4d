//! `jobpass-exchanger`: the server, and the admin's commands.

use jobpass_exchanger::cli;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
