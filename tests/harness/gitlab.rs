//! Runs a job of a pipeline under real `gitlab-ci-local`, in its shell executor.

use crate::{
    program::{self, Finished, Program},
    repository::Repository,
};

/// Runs one job with `variables`, as `id_tokens:` and the project's settings would set them.
///
/// It masks nothing: what the log shows is what the job let out.
pub async fn run(repository: &Repository, job: &str, variables: &[(&str, &str)]) -> Finished {
    let home = tempfile::tempdir().expect("the temporary directory is there");
    let mut gitlab = program::installed("gitlab-ci-local");
    gitlab.arg(job).args(["--needs", "--no-color"]);
    for (name, value) in variables {
        gitlab.arg("--variable").arg(format!("{name}={value}"));
    }
    gitlab.current_dir(repository.path()).env("PATH", program::path()).env("HOME", home.path());
    Program::run(gitlab).await
}
