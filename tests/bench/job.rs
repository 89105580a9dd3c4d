//! What `jobpass exec` adds to the exchange that it makes: beside the bare requests and the bare command.

use crate::{
    jobpass::Jobpass,
    load::Connection,
    tokens::{Forge, Token},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How often each is timed.
const RUNS: usize = 101;

/// Measures the `jobpass` of a path, and prints what it found.
pub(crate) fn measure(exchanger: &Path, program: &Path, directory: &Path) -> Result<()> {
    let directory = tempfile::tempdir_in(directory)?;
    let directory = directory.path();
    let forge = Forge::new()?;
    let jobpass = Jobpass::prepare(exchanger, &directory.join("jobpass"), &forge, &[])?;
    let (_running, _) = jobpass.start(&forge)?;
    let tokens = forge.mint(2 * RUNS, &jobpass.url)?;
    let (mut bare, mut command, mut exec) = (Vec::new(), Vec::new(), Vec::new());
    for pair in tokens.chunks_exact(2) {
        bare.push(timed(|| exchange(&jobpass, &pair[0]))?);
        command.push(timed(|| run(&mut Command::new("true")))?);
        let mut job = Command::new(program);
        job.args(["exec", "--grant", "deploy", "--", "true"]).env_clear().envs([
            ("PATH", "/usr/bin:/bin"),
            ("JOBPASS_URL", jobpass.url.as_str()),
            ("JOBPASS_ID_TOKEN", pair[1].as_str()),
        ]);
        job.env("XDG_RUNTIME_DIR", directory);
        exec.push(timed(|| run(&mut job))?);
    }
    let [bare, command, exec] = [bare, command, exec].map(median);
    let added = exec.saturating_sub(bare + command);
    let size = fs::metadata(program)?.len();
    writeln!(
        std::io::stdout().lock(),
        "an exchange and its end, by bare requests  {bare:>9.2?}\n`true`, started and ended                   {command:>9.2?}\n\
         `jobpass exec -- true`                     {exec:>9.2?}\nadded                                      {added:>9.2?}  goal: 15 ms\n\
         size of the program                        {:>6.2} MiB  goal: 4 MiB\n",
        size as f64 / f64::from(1 << 20)
    )?;
    Ok(())
}

/// What the program asks of the server, on a new connection as it does.
fn exchange(jobpass: &Jobpass, token: &Token) -> Result<()> {
    let mut connection = Connection::to(jobpass.address())?;
    let answer = connection.ask(&jobpass.request(token))?;
    ensure!(answer.status == 200, "{}", String::from_utf8_lossy(answer.body));
    let body: Value = serde_json::from_slice(answer.body)?;
    let handle = body["refresh_token"].as_str().context("no handle")?.to_owned();
    ensure!(connection.ask(&jobpass.revoke(&handle))?.status == 200, "it is not taken back");
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let done = command.stdin(Stdio::null()).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
