//! A real program, started and ended by a test.

use rustix::process::Signal;
use std::{
    env,
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};
use tempfile::{NamedTempFile, TempDir};

/// How long a program may take to become ready, or to end when it was told to.
const PATIENCE: Duration = Duration::from_secs(120);

/// A child process in a process group of its own, with its output kept. Dropping it kills the group.
pub struct Program {
    name: String,
    child: Child,
    output: NamedTempFile,
}

/// How a program ended.
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that it wrote, stdout and stderr as they came.
    pub log: String,
}

impl Finished {
    /// Fails with the program's output when it did not exit with 0.
    #[track_caller]
    pub fn expect_success(self) -> String {
        assert!(self.status.success(), "it ended with {}:\n{}", self.status, self.log);
        self.log
    }
}

impl Program {
    /// Starts a program; stdout and stderr go into one log, and there is no stdin.
    #[track_caller]
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let output = NamedTempFile::new().expect("the temporary directory takes a file");
        let stream = || Stdio::from(output.as_file().try_clone().expect("a file can be shared"));
        command.stdin(Stdio::null()).stdout(stream()).stderr(stream()).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name, child, output }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Runs a program to its end.
    pub async fn run(command: Command) -> Finished {
        Self::start(command).finish().await
    }

    /// Waits until `condition` holds; fails with the program's log when it ends before, or takes too long.
    pub async fn ready(mut self, condition: impl AsyncFn() -> bool) -> Self {
        let deadline = Instant::now() + PATIENCE;
        while !condition().await {
            let ended = self.child.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "{} ended with {ended:?}:\n{}", self.name, self.log());
            assert!(Instant::now() < deadline, "{} is not ready after {PATIENCE:?}:\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self
    }

    /// Waits for its end.
    pub async fn finish(mut self) -> Finished {
        let deadline = Instant::now() + 5 * PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                return Finished { status, log: self.log() };
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub async fn stop(self) -> Finished {
        self.stop_by(Signal::TERM).await
    }

    /// Sends it a signal and waits until it has ended.
    pub async fn stop_by(self, signal: Signal) -> Finished {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a child can be signalled");
        self.finish().await
    }

    /// What it wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        // Opened anew: the position of the child's own descriptor is where it writes next.
        let mut output = self.output.reopen().expect("the log is still there");
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).expect("a log can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.child);
        // Both fail only when everything has ended already.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A program that `tests/run` installed.
#[track_caller]
#[must_use]
pub fn installed(name: &str) -> Command {
    Command::new(bin().join(name))
}

/// A program of the system's packages, wherever they put it.
#[track_caller]
#[must_use]
pub fn system(name: &str) -> Command {
    let found =
        ["/usr/sbin", "/usr/bin", "/bin"].iter().map(|folder| Path::new(folder).join(name)).find(|p| p.exists());
    Command::new(found.unwrap_or_else(|| panic!("{name} is missing: run tests/run --install-only")))
}

/// The same, run as a user of its own where the tests run as root: many servers refuse to be root.
#[track_caller]
#[must_use]
pub fn system_as(user: &str, name: &str) -> Command {
    let program = system(name);
    if !rustix::process::geteuid().is_root() {
        return program;
    }
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
    command.arg(program.get_program()).current_dir("/");
    command
}

/// A directory for a server's data, owned by the user that [`system_as`] runs it as.
#[track_caller]
#[must_use]
pub fn data_directory(user: &str) -> TempDir {
    let directory = tempfile::Builder::new().prefix(user).tempdir().expect("the temporary directory is there");
    give_to(user, directory.path());
    directory
}

/// Makes a file or directory that user's own.
#[track_caller]
pub fn give_to(user: &str, path: &Path) {
    if rustix::process::geteuid().is_root() {
        let chown = Command::new("chown").arg(user).arg(path).status();
        assert!(chown.is_ok_and(|done| done.success()), "there is no user {user}: run tests/run --install-only");
    }
}

/// The folder of the programs that `tests/run` installed.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "the test bed's place is told to the tests in the environment")]
pub fn bin() -> PathBuf {
    let bed = env::var("JOBPASS_TESTBED").expect("these tests need real programs: run tests/run, which installs them");
    let bin = Path::new(&bed).join("bin");
    for name in ["act", "aws", "bao", "gitlab-ci-local", "initdb", "moto_server", "node", "postgres", "psql"] {
        assert!(bin.join(name).exists(), "{name} is missing from {}: run tests/run --install-only", bin.display());
    }
    bin
}

/// `PATH` with our own programs and the installed ones in front.
#[expect(clippy::disallowed_methods, reason = "real programs start further programs by name")]
#[must_use]
pub fn path() -> String {
    let own = built("jobpass");
    let own = own.parent().expect("a program lies in a folder").display();
    format!("{own}:{}:{}", bin().display(), env::var("PATH").unwrap_or_default())
}

/// One of this workspace's own programs, built first if it is not up to date.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        // …/target/debug/deps/systems-0123456789abcdef
        let this = env::current_exe().expect("a test knows its own path");
        let directory = this.ancestors().nth(2).expect("cargo puts tests two levels below the programs").to_owned();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--workspace", "--bins"]);
        // What cargo tells a test of its package makes build scripts run anew, and all that stands on them.
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
                cargo.env_remove(name);
            }
        }
        if directory.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.current_dir(root()).status().expect("cargo runs");
        assert!(status.success(), "the programs do not build");
        directory
    });
    directory.join(name)
}

/// The repository's root.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent")
}
