//! `jobpass-exchanger policy …`: everything that an admin asks of policies, offline.
//!
//! The answers are those of the crate `jobpass_policy`, which the server decides with; this module
//! reads files and prints. Standard output is data, standard error is talk.
//! Exit codes: 0 yes, 1 no (a test fails, a job is denied, two sets differ), 2 no answer.

mod analysis;
mod author;
mod init;
mod load;
mod print;

use self::{
    analysis::{DiffFlags, ExplainFlags, ReplayFlags, UsageFlags, WhatCanFlags, WhoCanFlags},
    author::{LintFlags, TestFlags},
    init::InitFlags,
    print::print,
};
use clap::{Args, Subcommand};
use jobpass_policy::{
    Profile,
    fixtures::{FIXTURES, fixture},
};
use serde_json::json;
use std::{io::Write as _, process::ExitCode};

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Write a first grant from what a job's token says, by asking or from flags.
    Init(InitFlags),
    /// Find what compiles and is unwise all the same.
    Lint(LintFlags),
    /// Run the tests of policies.
    Test(TestFlags),
    /// Print a JSON Schema for editors.
    Schema {
        /// Of which files: grant, guards, scope or cases.
        name: String,
    },
    /// Say why a job gets a grant or not, nearest rule first, and the smallest change that would permit it.
    Explain(ExplainFlags),
    /// Say in words who can have a grant, most permissive rule first.
    WhoCan(WhoCanFlags),
    /// Say what a job can have of which some claims are known, and what it would need.
    WhatCan(WhatCanFlags),
    /// Say what becomes permitted and denied from one set of policies to another, each with an example
    /// that was tried under both.
    Diff(DiffFlags),
    /// Decide what the audit log recorded again, and list every change.
    Replay(ReplayFlags),
    /// Find unused grants and rules, claims that could be pinned and TTLs far above what was used.
    Usage(UsageFlags),
    /// List the claims of a CI's tokens, or the CIs that there are profiles of.
    Claims(ClaimsFlags),
    /// Print a token's payload as a CI sends it, or list those that tests can start `from`.
    Fixtures {
        /// Which: github/push, …
        name: Option<String>,
    },
}

/// See [`PolicyCommand::Claims`].
#[derive(Args, Debug)]
pub struct ClaimsFlags {
    /// The CI: github, gitlab, …
    profile: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Whether the answer is yes.
type Answer = anyhow::Result<bool>;

/// Runs a command.
#[must_use]
pub fn run(command: PolicyCommand) -> ExitCode {
    match answer(command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nothing is left to say it to if standard error is closed.
            let _ = writeln!(std::io::stderr().lock(), "{}", crate::cli::explain(&error));
            ExitCode::from(2)
        }
    }
}

fn answer(command: PolicyCommand) -> Answer {
    match command {
        PolicyCommand::Init(flags) => init::init(&flags),
        PolicyCommand::Lint(flags) => author::lint(&flags),
        PolicyCommand::Test(flags) => author::test(&flags),
        PolicyCommand::Schema { name } => author::schema(&name),
        PolicyCommand::Explain(flags) => analysis::run_explain(&flags),
        PolicyCommand::WhoCan(flags) => analysis::run_who_can(&flags),
        PolicyCommand::WhatCan(flags) => analysis::run_what_can(&flags),
        PolicyCommand::Diff(flags) => analysis::run_diff(&flags),
        PolicyCommand::Replay(flags) => analysis::run_replay(&flags),
        PolicyCommand::Usage(flags) => analysis::run_usage(&flags),
        PolicyCommand::Claims(ClaimsFlags { profile: None, json }) => profiles(json),
        PolicyCommand::Claims(ClaimsFlags { profile: Some(name), json }) => claims(&name, json),
        PolicyCommand::Fixtures { name } => fixtures(name.as_deref()),
    }
}

fn profiles(json: bool) -> Answer {
    if json {
        let all: Vec<_> =
            Profile::all().map(|p| json!({ "name": p.name(), "title": p.title(), "docs": p.docs() })).collect();
        print::json(&all)?;
    } else {
        let rows = Profile::all().map(|p| [p.name(), p.title(), p.docs()].map(str::to_owned).to_vec());
        print(&print::table(&["profile", "CI", "its documentation"], rows))?;
    }
    Ok(true)
}

fn claims(name: &str, json: bool) -> Answer {
    let Some(profile) = Profile::named(name) else {
        let known: Vec<_> = Profile::all().map(|profile| profile.name()).collect();
        anyhow::bail!("no CI is called {name}; there are {}", known.join(", "));
    };
    if json {
        let all: Vec<_> = profile
            .claims()
            .map(|claim| {
                json!({
                    "name": claim.name, "type": claim.kind.words(), "class": claim.class.words(),
                    "recorded": claim.recorded, "values": claim.values, "about": claim.about,
                    "from": profile.derived_from(&claim.name),
                })
            })
            .collect();
        print::json(&all)?;
    } else {
        let rows = profile.claims().map(|claim| {
            let mut about: Vec<String> = claim.about.iter().cloned().collect();
            about.extend(profile.derived_from(&claim.name).map(|from| format!("cut out of {from}")));
            about.extend((!claim.values.is_empty()).then(|| claim.values.join(", ")));
            let recorded = if claim.recorded { "yes" } else { "no" };
            vec![
                claim.name.to_string(),
                claim.kind.words().to_owned(),
                claim.class.words().to_owned(),
                recorded.to_owned(),
                about.join("; "),
            ]
        });
        print(&print::table(&["claim", "type", "class", "in the audit log", "about"], rows))?;
    }
    Ok(true)
}

fn fixtures(name: Option<&str>) -> Answer {
    match name {
        None => print(&FIXTURES.iter().map(|(name, _)| format!("{name}\n")).collect::<String>())?,
        Some(name) => match fixture(name) {
            Some(payload) => print(payload)?,
            None => anyhow::bail!("there is no fixture {name}; `policy fixtures` lists them"),
        },
    }
    Ok(true)
}
