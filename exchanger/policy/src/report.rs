//! Diagnostics in the forms that other programs read.

use crate::{
    lint::RULES,
    source::{Diagnostic, Severity},
};
use serde_json::{Value, json};
use std::fmt::Write;

/// SARIF 2.1.0 (OASIS), as code scanning reads it.
#[must_use]
pub fn sarif(diagnostics: &[Diagnostic]) -> Value {
    let level = |severity: Severity| match severity {
        Severity::Info => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    let rules = RULES.iter().map(|rule| {
        json!({
            "id": rule.id,
            "shortDescription": { "text": rule.reason },
            "help": { "text": rule.fix },
            "helpUri": format!("docs/lint.md#{}", rule.id),
            "defaultConfiguration": { "level": level(rule.severity) },
        })
    });
    let results = diagnostics.iter().map(|diagnostic| {
        let (line, column) = diagnostic.position();
        json!({
            "ruleId": diagnostic.code,
            "level": level(diagnostic.severity),
            "message": { "text": text(diagnostic) },
            "locations": [{
                "physicalLocation": {
                    "artifactLocation": { "uri": diagnostic.path() },
                    "region": { "startLine": line, "startColumn": column },
                },
            }],
        })
    });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "jobpass-exchanger policy lint", "rules": rules.collect::<Vec<_>>() } },
            "results": results.collect::<Vec<_>>(),
        }],
    })
}

/// Workflow commands of GitHub Actions, one line each, which annotate the changed files.
#[must_use]
pub fn github(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().fold(String::new(), |mut out, diagnostic| {
        let command = match diagnostic.severity {
            Severity::Info => "notice",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let (line, column) = diagnostic.position();
        let (file, title) = (property(diagnostic.path()), property(diagnostic.code));
        let message = data(&text(diagnostic));
        // Writing to a String cannot fail.
        let _ = writeln!(out, "::{command} file={file},line={line},col={column},title={title}::{message}");
        out
    })
}

fn text(diagnostic: &Diagnostic) -> String {
    match &diagnostic.help {
        Some(help) => format!("{}\n{help}", diagnostic.message),
        None => diagnostic.message.clone(),
    }
}

/// The escapes of the runner's command parser: `%` first.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
