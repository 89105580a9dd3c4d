//! A git repository for a CI to run.

use crate::program::{Program, root};
use std::{fs, path::Path, process::Command};
use tempfile::TempDir;

/// A temporary repository `acme/api`; removed on drop.
pub struct Repository(TempDir);

impl Repository {
    /// Makes a repository of files from this one, each as (from, to); a folder goes with all that is in it.
    pub async fn of(files: &[(&str, &str)]) -> Self {
        let repository = Self(tempfile::tempdir().expect("the temporary directory is there"));
        for (from, to) in files {
            copy(&root().join(from), &repository.path().join(to));
        }
        for arguments in [
            &["init", "--quiet", "--initial-branch=main"][..],
            &["remote", "add", "origin", "https://git.example/acme/api.git"],
            &["add", "--all"],
            &["-c", "user.name=jo", "-c", "user.email=jo@acme.example", "commit", "--quiet", "--message=all"],
        ] {
            let mut git = Command::new("git");
            git.args(arguments).current_dir(repository.path());
            Program::run(git).await.expect_success();
        }
        repository
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

fn copy(from: &Path, to: &Path) {
    let fail = |error| panic!("cannot copy {} to {}: {error}", from.display(), to.display());
    if from.is_dir() {
        fs::create_dir_all(to).unwrap_or_else(fail);
        for entry in fs::read_dir(from).expect("it is a folder").map(|entry| entry.expect("it can be listed")) {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::create_dir_all(to.parent().expect("a file lies in a folder")).unwrap_or_else(fail);
        fs::copy(from, to).map(drop).unwrap_or_else(fail);
    }
}
