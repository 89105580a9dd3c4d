//! Config, twice: [`file::File`] as it is written, [`Config`] as it is meant. Files and the
//! environment are read here and nowhere else.

pub mod env;
pub mod file;
mod files;
mod resolve;
pub mod secret_ref;
pub mod span;

pub use env::Env;
pub use resolve::Config;
pub use secret_ref::{SecretError, SecretRef};
pub use span::Span;

use serde_saphyr::Location;
use std::{fmt, path::PathBuf};

/// Why a config cannot be used: all its problems, each with its place and its cure.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}\n  = help: name the config with --config FILE or in JOBPASS_CONFIG", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not such a config.
    #[error("{0}")]
    Problems(Problems),
}

/// Problems in one file, at least one.
#[derive(Debug)]
pub struct Problems(pub(crate) Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        Ok(())
    }
}

/// One problem: what, where (with an excerpt), and the cure.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    place: Place,
    message: String,
    cure: String,
}

/// A place in the file, and its line.
#[derive(Debug, Clone)]
struct Place {
    path: String,
    line: usize,
    column: usize,
    excerpt: Option<String>,
}

impl Place {
    fn new(path: &str, text: &str, at: Location) -> Self {
        let (line, column) = (usize::try_from(at.line()).unwrap_or(0), usize::try_from(at.column()).unwrap_or(0));
        let excerpt = line.checked_sub(1).and_then(|index| text.lines().nth(index)).map(str::to_owned);
        Self { path: path.to_owned(), line, column, excerpt }
    }

    fn problem(self, message: impl Into<String>, cure: impl Into<String>) -> Problem {
        Problem { place: self, message: message.into(), cure: cure.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { path, line, column, excerpt } = &self.place;
        write!(f, "error: {}\n  --> {path}:{line}:{column}", self.message)?;
        if let Some(excerpt) = excerpt {
            let gutter = line.to_string();
            let blank = " ".repeat(gutter.len());
            let caret = " ".repeat(column.saturating_sub(1));
            write!(f, "\n {blank} |\n {gutter} | {excerpt}\n {blank} | {caret}^")?;
        }
        if !self.cure.is_empty() {
            write!(f, "\n  = help: {}", self.cure)?;
        }
        Ok(())
    }
}
