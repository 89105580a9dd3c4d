//! `GITHUB_ENV` and `GITHUB_OUTPUT`: how one step hands values to the later ones
//! (GitHub docs, "Workflow commands", environment files, multiline strings).

use super::{DeliverError, Variable};
use crate::client::random;
use rustix::fs::{self, Mode, OFlags};
use std::{
    fmt::Write as _,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Appends variables to an environment file of the runner; `variable` names the one that held its path.
///
/// # Errors
/// When the file is not there or a value cannot be written to it.
pub(crate) fn append(path: Option<PathBuf>, variable: &str, values: &[Variable]) -> Result<(), DeliverError> {
    let failed = |path: &Path, problem: String| DeliverError::File { path: path.display().to_string(), problem };
    let path =
        path.ok_or_else(|| failed(Path::new(variable), "is not set; this way works in GitHub Actions only".into()))?;
    let delimiter = random::<16>().iter().fold("jobpass_".to_owned(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    });
    let mut text = Zeroizing::new(String::with_capacity(16 * 1024));
    for value in values {
        let _ = writeln!(text, "{}<<{delimiter}\n{}\n{delimiter}", value.name, value.value.expose());
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::open(&path, flags, Mode::empty()).map_err(|error| failed(&path, error.to_string()))?;
    File::from(file).write_all(text.as_bytes()).map_err(|error| failed(&path, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::{Given, environment_names, variables};

    #[test]
    fn a_value_cannot_end_its_own_text() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "A=1\n").expect("write");
        let json = r#"{"type":"bearer","token":"line 1\nEOF\nPATH=/evil"}"#;
        let credential = serde_json::from_str(json).expect("credential");
        let given = [Given { grant: "g".parse().expect("name"), credential }];
        let values = variables(&given, &[], &environment_names).expect("variables");
        append(Some(file.path().into()), "GITHUB_ENV", &values).expect("append");
        let text = std::fs::read_to_string(file.path()).expect("read");
        let lines: Vec<&str> = text.lines().collect();
        let delimiter = lines[1].strip_prefix("JOBPASS_TOKEN<<").expect("heredoc");
        assert_eq!(delimiter.len(), 8 + 32);
        assert_eq!(lines, ["A=1", lines[1], "line 1", "EOF", "PATH=/evil", delimiter]);
    }
}
