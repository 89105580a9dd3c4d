//! The built binary against a fake CI and server: what a job sees.
#![expect(clippy::expect_used, reason = "a broken test setup ends the test")]

mod asking;
mod delivery;
mod exec;
mod fake;
mod helpers;

use fake::Fake;
use std::{
    path::Path,
    process::{Command, Output},
};

/// Which CI the job thinks it runs in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ci {
    GitHub,
    GitLab,
}

/// One job: its own fake, directories and environment.
struct Job {
    fake: Fake,
    home: tempfile::TempDir,
    ci: Ci,
}

impl Job {
    fn new(ci: Ci) -> Self {
        Self { fake: Fake::start(), home: tempfile::tempdir().expect("directory"), ci }
    }

    fn path(&self) -> &Path {
        self.home.path()
    }

    /// `jobpass` with this job's environment and nothing else.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jobpass"));
        command.args(args).current_dir(self.path()).env_clear();
        command.env("PATH", "/usr/bin:/bin").env("JOBPASS_URL", &self.fake.url).env("XDG_RUNTIME_DIR", self.path());
        match self.ci {
            Ci::GitHub => command
                .env("GITHUB_ACTIONS", "true")
                .env("GITHUB_RUN_ID", "7")
                .env("ACTIONS_ID_TOKEN_REQUEST_URL", format!("{}/ci?api=1", self.fake.url))
                .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ci-bearer"),
            Ci::GitLab => command
                .env("GITLAB_CI", "true")
                .env("CI_JOB_ID", "7")
                .env("CI_PROJECT_DIR", self.path().join("workspace"))
                .env("JOBPASS_ID_TOKEN", self.fake.token()),
        };
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        Ended::from(self.command(args).output().expect("jobpass runs"))
    }

    /// `jobpass exec` of a shell script.
    fn exec(&self, grants: &[&str], script: &str) -> Ended {
        let grants = grants.iter().flat_map(|grant| ["--grant", grant]);
        let args: Vec<&str> = ["exec"].into_iter().chain(grants).chain(["--", "sh", "-c", script]).collect();
        self.run(&args)
    }
}

#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}
