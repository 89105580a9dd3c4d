//! `policy lint`, `policy test` and `policy schema`: for those who write policies.

use super::{
    Answer,
    load::{Loaded, Offline, PolicyFiles},
    print::{self, print},
};
use crate::{
    backends::registry::grant_schema,
    clock::{Clock as _, SystemClock},
};
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use jobpass_policy::{
    Severity,
    cases::{CaseResult, Coverage, Report, Suite},
    lint, report,
    schema::schemas,
};
use std::{collections::BTreeSet, fmt::Write as _, fs, io::Write as _, path::PathBuf};

/// See [`super::PolicyCommand::Lint`].
#[derive(Args, Debug)]
pub struct LintFlags {
    #[command(flatten)]
    files: PolicyFiles,
    /// How to write the findings.
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
    /// The least severe finding that makes the command fail.
    #[arg(long, value_enum, default_value = "warning")]
    fail_on: Level,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// With an excerpt of the file and the place marked in it.
    Human,
    /// A list of objects.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// Annotations of GitHub Actions.
    Github,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    Info,
    Warning,
    Error,
}

/// See [`super::PolicyCommand::Test`].
#[derive(Args, Debug)]
pub struct TestFlags {
    #[command(flatten)]
    files: PolicyFiles,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// List rules and matchers that no case exercises.
    #[arg(long)]
    coverage: bool,
    /// Drop or widen each matcher in turn; fail if no case notices.
    #[arg(long)]
    mutants: bool,
    /// Write the results for a CI as well.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

pub(super) fn lint(flags: &LintFlags) -> Answer {
    let now = SystemClock.now().secs();
    let (mut found, mut assumed) = (Vec::new(), BTreeSet::new());
    for Offline { compiled, sources, assumes, .. } in flags.files.compile()? {
        found.extend(lint::lint(&compiled, now));
        found.extend(Suite::new(&compiled.set).add(&sources));
        let rules = compiled.set.grants().flat_map(|grant| grant.rules()).filter(|_| assumes);
        assumed.extend(rules.map(|rule| (rule.issuer().clone(), rule.profile().title().to_owned())));
    }
    for (issuer, title) in assumed {
        let mut stderr = std::io::stderr().lock();
        writeln!(stderr, "note: the issuer {issuer} is taken to be {title}; --config makes it exact")?;
    }
    match flags.format {
        Format::Json => print::json(&found)?,
        Format::Sarif => print::json(&report::sarif(&found))?,
        Format::Github => print(&report::github(&found))?,
        Format::Human => {
            let mut out: String = found.iter().map(|diagnostic| diagnostic.render(false) + "\n").collect();
            let count = |severity| found.iter().filter(|diagnostic| diagnostic.severity == severity).count();
            let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
            writeln!(out, "errors: {errors}, warnings: {warnings}, infos: {}", count(Severity::Info))?;
            print(&out)?;
        }
    }
    let least = match flags.fail_on {
        Level::Info => Severity::Info,
        Level::Warning => Severity::Warning,
        Level::Error => Severity::Error,
    };
    Ok(found.iter().all(|diagnostic| diagnostic.severity < least))
}

pub(super) fn test(flags: &TestFlags) -> Answer {
    let (mut report, mut coverage, mut survivors) = (Report::default(), Coverage::default(), Vec::new());
    for Loaded { set, sources, .. } in flags.files.load_sets()? {
        let mut suite = Suite::new(&set);
        let broken = suite.add(&sources);
        for diagnostic in &broken {
            writeln!(std::io::stderr().lock(), "{}", diagnostic.render(false))?;
        }
        if !broken.is_empty() {
            bail!("the files of cases have errors");
        }
        report.results.extend(suite.run().results);
        if flags.coverage {
            let Coverage { all, missed } = suite.coverage();
            coverage.all += all;
            coverage.missed.extend(missed);
        }
        if flags.mutants {
            survivors.extend(suite.mutants());
        }
    }
    let coverage = flags.coverage.then_some(coverage);
    let survivors = flags.mutants.then_some(survivors);
    if let Some(path) = &flags.junit {
        fs::write(path, report.junit()).with_context(|| path.display().to_string())?;
    }
    if flags.json {
        let (results, passed) = (&report.results, report.passed());
        print::json(&serde_json::json!({
            "results": results, "passed": passed, "coverage": coverage, "mutants": survivors,
        }))?;
    } else {
        let mut out = String::new();
        for CaseResult { grant, name, failure } in &report.results {
            match failure {
                None => writeln!(out, "ok      {grant}: {name}")?,
                Some(diagnostic) => writeln!(out, "FAILED  {grant}: {name}\n{}", diagnostic.render(false))?,
            }
        }
        let failed = report.results.iter().filter(|result| result.failure.is_some()).count();
        writeln!(out, "{} tests, {failed} failed", report.results.len())?;
        if let Some(coverage) = &coverage {
            writeln!(out, "{} of {} rules and matchers exercised", coverage.all - coverage.missed.len(), coverage.all)?;
            for missed in &coverage.missed {
                writeln!(out, "  {}, rule {}: {}", missed.grant, missed.rule, missed.what)?;
            }
        }
        for missed in survivors.iter().flatten() {
            writeln!(out, "UNNOTICED  {}, rule {}: {}", missed.grant, missed.rule, missed.what)?;
        }
        print(&out)?;
    }
    Ok(report.passed() && survivors.is_none_or(|survivors| survivors.is_empty()))
}

pub(super) fn schema(name: &str) -> Answer {
    let all: Vec<_> = [("grant", grant_schema())].into_iter().chain(schemas()).collect();
    match all.iter().find(|(known, _)| *known == name) {
        Some((_, schema)) => print::json(schema)?,
        None => {
            let known: Vec<_> = all.iter().map(|(known, _)| *known).collect();
            bail!("there is no schema {name}; there are {}", known.join(", "))
        }
    }
    Ok(true)
}
