//! `jobpass-exchanger`: the server, and the admin's commands.

use jobpass_exchanger::cli;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages, which would triple the memory of an idle server. A kernel that
    // does not know the request leaves it at that.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    cli::run()
}
