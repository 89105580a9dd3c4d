//! Runs a job of a workflow under real `act`, without containers.

use crate::{
    program::{self, Finished, Program},
    repository::Repository,
};

/// Runs one job as a push would, with `environment` in every step of it.
///
/// `act` masks what `::add-mask::` registers, but prints tokens when it is asked to be verbose: it is not.
pub async fn run(repository: &Repository, job: &str, environment: &[(&str, &str)]) -> Finished {
    // A home of its own: without an actrc there `act` asks questions.
    let home = tempfile::tempdir().expect("the temporary directory is there");
    let config = home.path().join(".config/act");
    std::fs::create_dir_all(&config).and_then(|()| std::fs::write(config.join("actrc"), "")).expect("the home is ours");

    let mut act = program::installed("act");
    act.args(["push", "--job", job, "--platform", "ubuntu-latest=-self-hosted"]);
    act.args(["--no-cache-server", "--pull=false", "--action-offline-mode", "--container-daemon-socket", "-"]);
    for (name, value) in environment {
        act.arg("--env").arg(format!("{name}={value}"));
    }
    act.current_dir(repository.path()).env("PATH", program::path()).env("HOME", home.path());
    act.env_remove("XDG_CONFIG_HOME").env_remove("XDG_CACHE_HOME");
    Program::run(act).await
}
