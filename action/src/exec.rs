//! Runs the child: its environment, its filtered outputs, its signals, its end.
//!
//! Asks for nothing and revokes nothing; that is the command's work around it.

use crate::{
    deliver::Variable,
    env::Env,
    redact::{Filter, Redactor},
    signals::Signals,
};
use jobpass_protocol::Secret;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::AsFd,
    fs::{Access, access},
    io::{Errno, ioctl_fionread},
    process::{Pid, WaitId, WaitIdOptions, waitid},
};
use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// jobpass itself failed.
pub(crate) const EXIT_OWN_FAILURE: u8 = 125;
/// The command was found but cannot be run.
const EXIT_CANNOT_RUN: u8 = 126;
/// The command was not found.
const EXIT_NOT_FOUND: u8 = 127;

/// Set for the child, so that a jobpass within it can tell why there is no token.
pub(crate) const INSIDE: &str = "JOBPASS_EXEC";

/// Variables with which a process could get tokens of its own, in the CIs that we know.
const CI_TOKENS: &[&str] = &[
    "ACTIONS_ID_TOKEN_REQUEST_URL",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "JOBPASS_ID_TOKEN",
    "BITBUCKET_STEP_OIDC_TOKEN",
    "CF_OIDC_REQUEST_TOKEN",
    "CF_OIDC_REQUEST_URL",
    "CIRCLE_OIDC_TOKEN",
    "CIRCLE_OIDC_TOKEN_V2",
    "SEMAPHORE_OIDC_TOKEN",
    "SYSTEM_OIDCREQUESTURI",
    "TFC_WORKLOAD_IDENTITY_TOKEN",
];

/// After the child's end, outputs that a process in the background still holds open are read until this much silence,
const SILENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// but no longer than this, however much it has to say.
const LONGEST_DRAIN: Duration = Duration::from_secs(5);

/// A command that could not be started, and the exit code that a shell gives for that.
#[derive(Debug, thiserror::Error)]
#[error("cannot run `{command}`: {source}")]
pub(crate) struct SpawnError {
    command: String,
    source: io::Error,
}

impl SpawnError {
    /// 127 when there is no such command, else 126.
    pub(crate) fn exit_code(&self) -> u8 {
        if self.source.kind() == io::ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_CANNOT_RUN }
    }
}

/// Looks for a command as its start will, so that no credential is made for one that is not there.
///
/// # Errors
/// When it is not there, or may not be executed.
pub(crate) fn find(command: &OsStr, env: &Env) -> Result<(), SpawnError> {
    let paths: Vec<PathBuf> = match env.text("PATH") {
        _ if command.as_bytes().contains(&b'/') => vec![command.into()],
        Some(path) => std::env::split_paths(path).map(|directory| directory.join(command)).collect(),
        // The system has directories of its own for that.
        None => return Ok(()),
    };
    let mut source = Errno::NOENT;
    for path in paths {
        match access(&path, Access::EXEC_OK) {
            Ok(()) if path.is_dir() => source = Errno::ACCESS,
            Ok(()) => return Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => source = error,
        }
    }
    Err(SpawnError { command: command.to_string_lossy().into_owned(), source: source.into() })
}

/// What to run.
pub(crate) struct Plan<'a> {
    pub(crate) command: &'a [OsString],
    pub(crate) variables: &'a [Variable],
    /// Texts whose variables the child must not inherit, whatever they are called.
    pub(crate) tokens: &'a [Secret],
}

/// Runs a command to its end and returns the exit code that a shell would. `beside` runs at its side; its channel
/// closes when the command ends, and whatever it does then, it does while the outputs are drained.
///
/// # Errors
/// When the command cannot be started.
pub(crate) fn run(
    plan: &Plan<'_>,
    env: &Env,
    redactor: &Redactor,
    signals: &Signals,
    beside: impl FnOnce(&std::sync::mpsc::Receiver<()>) + Send,
) -> Result<u8, SpawnError> {
    let failed = |source| SpawnError { command: plan.command[0].to_string_lossy().into_owned(), source };
    let mut command = Command::new(&plan.command[0]);
    command.args(&plan.command[1..]).stdout(Stdio::piped()).stderr(Stdio::piped());
    forbidden(env, plan.tokens).for_each(|name| {
        command.env_remove(name);
    });
    command.env(INSIDE, "1").envs(plan.variables.iter().map(|variable| (&variable.name, variable.value.expose())));
    let mut child = command.spawn().map_err(failed)?;
    // The command's own copy of the credential is no longer needed.
    drop(command);
    let outputs = (child.stdout.take(), child.stderr.take());
    let drain = Drain { ended: OnceLock::new(), signals };
    let (end, until_end) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || beside(&until_end));
        scope.spawn(|| outputs.0.map(|output| pump(output, io::stdout(), redactor.filter(), &drain)));
        scope.spawn(|| outputs.1.map(|output| pump(output, io::stderr(), redactor.filter(), &drain)));
        let status = wait(&mut child, signals);
        let _ = drain.ended.set(Instant::now());
        drop(end);
        status
    })
    .map(exit_code)
    .map_err(failed)
}

/// Variables that hold a token or lead to one.
fn forbidden<'a>(env: &'a Env, tokens: &'a [Secret]) -> impl Iterator<Item = &'a str> {
    env.iter()
        .filter(|(name, value)| {
            let holds = |token: &Secret| {
                let token = token.expose().as_bytes();
                !token.is_empty() && value.as_bytes().windows(token.len()).any(|window| window == token)
            };
            CI_TOKENS.contains(name) || tokens.iter().any(holds)
        })
        .map(|(name, _)| name)
}

/// Waits without freeing the process id, so that no signal can reach a stranger that got it next.
fn wait(child: &mut Child, signals: &Signals) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        signals.attach(pid);
        while let Err(Errno::INTR) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {}
        signals.detach();
    }
    child.wait()
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(EXIT_OWN_FAILURE)
}

/// What is still read once the child has ended.
struct Drain<'a> {
    ended: OnceLock<Instant>,
    signals: &'a Signals,
}

impl Drain<'_> {
    fn has_begun(&self) -> bool {
        self.ended.get().is_some()
    }

    fn is_over(&self) -> bool {
        self.ended.get().is_some_and(|at| at.elapsed() >= LONGEST_DRAIN || self.signals.pending().is_some())
    }
}

fn pump(mut from: impl Read + AsFd, mut to: impl Write, mut filter: Filter<'_>, drain: &Drain<'_>) {
    let mut buffer = Zeroizing::new(vec![0; 64 * 1024]);
    let mut out = Vec::with_capacity(buffer.len());
    // What was there when the child had ended is its own, and comes out whole, however slow the reader is.
    let mut own = None;
    loop {
        if drain.has_begun() && *own.get_or_insert_with(|| ioctl_fionread(&from).unwrap_or(0)) == 0 && drain.is_over() {
            break;
        }
        match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&SILENCE)) {
            Ok(0) if drain.has_begun() => break,
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => break,
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                filter.push(&buffer[..length], &mut out);
                own = own.map(|own| own.saturating_sub(length as u64));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        if !out.is_empty() && (to.write_all(&out).is_err() || to.flush().is_err()) {
            // Nobody reads any more. Without our end of the pipe the child learns that in its own way.
            return;
        }
        out.clear();
    }
    filter.finish(&mut out);
    let _ = to.write_all(&out).and_then(|()| to.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_inherits_no_way_to_a_token() {
        let env = Env::from([
            ("PATH", "/bin"),
            ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://token.example"),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "x"),
            ("JOBPASS_ID_TOKEN", "a.b.c"),
            ("SIGSTORE_ID_TOKEN", "other"),
            ("MY_COPY", "Bearer a.b.c"),
            ("JOBPASS_URL", "https://jobpass.example"),
        ]);
        let tokens = [Secret::from("a.b.c"), Secret::from("")];
        let found: Vec<&str> = forbidden(&env, &tokens).collect();
        assert_eq!(
            found,
            ["ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL", "JOBPASS_ID_TOKEN", "MY_COPY"]
        );
    }
}
