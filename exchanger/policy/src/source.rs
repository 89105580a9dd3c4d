//! Policy files as texts, and what is to be said about them: diagnostics with their place.

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use serde::{Serialize, Serializer, ser::SerializeStruct};
use std::{fmt, ops::Range, sync::Arc};

/// The largest policy file, in bytes. A grant is a page or two.
pub const MAX_SOURCE_BYTES: usize = 256 * 1024;

/// The longest line that an excerpt shows, in bytes.
const MAX_SHOWN_BYTES: usize = 1000;
/// How many lines an excerpt has at most.
const MAX_SHOWN_LINES: usize = 100;

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path, as errors show it. The file's name says what kind of file it is.
    pub path: String,
    /// What it holds.
    pub text: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// To be repaired, or to be allowed with a reason.
    Warning,
    /// Refused by the server.
    Error,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing to be said about one place of one file.
#[derive(Clone)]
pub struct Diagnostic {
    /// Names the kind of problem, for machines and for the documentation.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// How to repair it.
    pub help: Option<String>,
    span: Option<Range<usize>>,
    file: Text,
}

impl Diagnostic {
    pub(crate) fn new(file: &Text, span: Option<Range<usize>>, code: &'static str, message: String) -> Self {
        Self { code, severity: Severity::Error, message, help: None, span, file: file.clone() }
    }

    pub(crate) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn with_severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// The file that it is about.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.file.path
    }

    /// The place in the file's text, in bytes.
    #[must_use]
    pub fn span(&self) -> Option<Range<usize>> {
        self.span.clone()
    }

    /// Line and column, both from 1, the column in characters; the first line where the place is
    /// the file as a whole.
    #[must_use]
    pub fn position(&self) -> (usize, usize) {
        let start = self.span.as_ref().map_or(0, |span| span.start);
        let before = self.file.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before.get(line_start..).map_or(0, |line| line.chars().count());
        (before.matches('\n').count() + 1, column + 1)
    }

    /// The diagnostic with an excerpt of the source and the place marked in it.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        if !self.has_short_lines() {
            return self.to_string();
        }
        let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler =
            GraphicalReportHandler::new_themed(theme).with_width(118).with_links(false).with_wrap_lines(false);
        let source = NamedSource::new(&self.file.path, self.file.text.clone()).with_language("yaml");
        let mut out = String::new();
        match handler.render_report(&mut out, &Report { diagnostic: self, source }) {
            Ok(()) => out,
            Err(fmt::Error) => self.to_string(),
        }
    }

    /// Whether its lines, and those beside them, can be shown. Whoever writes a file chooses how long they are.
    fn has_short_lines(&self) -> bool {
        let Some(span) = &self.span else { return true };
        let (Some(before), Some(after)) = (self.file.text.get(..span.start), self.file.text.get(span.end..)) else {
            return false;
        };
        let first = before.rmatch_indices('\n').nth(1).map_or(0, |(newline, _)| newline);
        let last = after.match_indices('\n').nth(1).map_or(self.file.text.len(), |(newline, _)| span.end + newline);
        let lines = self.file.text.get(first..last).unwrap_or_default().lines();
        lines.clone().count() <= MAX_SHOWN_LINES && lines.map(str::len).max().unwrap_or(0) <= MAX_SHOWN_BYTES
    }
}

impl fmt::Display for Diagnostic {
    /// `path:line:column: error[code]: message (help)`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.position();
        let Self { code, severity, message, help, .. } = self;
        write!(f, "{}:{line}:{column}: {}[{code}]: {message}", self.path(), severity.word())?;
        match help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (line, column) = self.position();
        let mut out = serializer.serialize_struct("Diagnostic", 7)?;
        out.serialize_field("code", self.code)?;
        out.serialize_field("severity", &self.severity)?;
        out.serialize_field("path", self.path())?;
        out.serialize_field("line", &line)?;
        out.serialize_field("column", &column)?;
        out.serialize_field("message", &self.message)?;
        out.serialize_field("help", &self.help)?;
        out.end()
    }
}

/// A file, shared by whatever points into it.
#[derive(Clone)]
pub(crate) struct Text(Arc<Source>);

impl From<&Source> for Text {
    fn from(source: &Source) -> Self {
        Self(Arc::new(source.clone()))
    }
}

impl std::ops::Deref for Text {
    type Target = Source;
    fn deref(&self) -> &Source {
        &self.0
    }
}

struct Report<'a> {
    diagnostic: &'a Diagnostic,
    source: NamedSource<String>,
}

impl fmt::Debug for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.diagnostic.span.is_none() {
            write!(f, "{}: ", self.diagnostic.path())?;
        }
        f.write_str(&self.diagnostic.message)
    }
}
impl std::error::Error for Report<'_> {}
impl miette::Diagnostic for Report<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.diagnostic.code))
    }
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.diagnostic.severity {
            Severity::Info => miette::Severity::Advice,
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.diagnostic.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.diagnostic.span.is_some().then_some(&self.source)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.diagnostic.span.clone()?;
        Some(Box::new(std::iter::once(LabeledSpan::new(None, span.start, span.len()))))
    }
}

/// The known name that was probably meant, if one is near enough: one that it shortens, else the fewest edits away.
#[must_use]
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let reach = (name.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|candidate| {
            // Of `oidc.circleci.com/org-id`, people remember the end.
            let spellings = [candidate, candidate.rsplit('/').next().unwrap_or(candidate)].map(str::to_lowercase);
            // So many edits are needed at least: whoever writes a file chooses how long its names are.
            let is_far = |known: &str| name.chars().count().abs_diff(known.chars().count()) > reach;
            let edits = |known: &String| match known {
                known if shortens(&name, known) => 0,
                known if is_far(known) => usize::MAX,
                known => distance(&name, known),
            };
            (spellings.iter().map(edits).min().unwrap_or(usize::MAX), candidate.len(), candidate)
        })
        .filter(|(edits, ..)| *edits <= reach)
        .min()
        .map(|(.., candidate)| candidate)
}

/// Whether a name is the beginning of another one, word by word, or its end: `repo_id` and `owner_id` are.
fn shortens(name: &str, known: &str) -> bool {
    let mut words = known.split('_');
    let begins = name.len() > 2
        && name.split('_').all(|word| !word.is_empty() && words.next().is_some_and(|whole| whole.starts_with(word)));
    begins || known.strip_suffix(name).is_some_and(|rest| rest.ends_with('_'))
}

/// Edits (insert, delete, replace, swap neighbours) between two short texts.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |back: usize, j: usize| rows.len().checked_sub(back).and_then(|r| rows[r].get(j)).copied();
            let replaced = at(1, j).unwrap_or(i) + usize::from(x != y);
            let mut best = replaced.min(at(1, j + 1).unwrap_or(i) + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i - 1] == *y && b[j - 1] == *x {
                best = best.min(at(2, j - 1).unwrap_or(i) + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows.last().and_then(|row| row.last()).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_far_to_the_right_is_named_and_not_drawn() {
        let text = format!("{}x\n", " ".repeat(70_000));
        let file = Text::from(&Source { path: "a.yaml".to_owned(), text });
        let shown = Diagnostic::new(&file, Some(70_000..70_001), "syntax", "it is bad".to_owned()).render(false);
        assert_eq!(shown, "a.yaml:1:70001: error[syntax]: it is bad");
    }

    #[test]
    fn nearest_names() {
        let known = ["repository", "repository_id", "repository_owner_id", "ref", "ref_type", "environment"];
        for (name, expected) in [
            ("repositry", Some("repository")),
            ("repository_ownerid", Some("repository_owner_id")),
            ("enviroment", Some("environment")),
            ("rfe", Some("ref")),
            ("Repository", Some("repository")),
            ("repo", Some("repository")),
            ("repo_owner_id", Some("repository_owner_id")),
            ("owner_id", Some("repository_owner_id")),
            ("env", Some("environment")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(name, known), expected, "{name}");
        }
    }
}
