//! What a profile says for linting, for reports and for a first grant: words, no decisions.

use serde::Deserialize;
use std::collections::BTreeMap;

/// What linting knows about a CI beyond its claims.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LintFacts {
    /// Claims that bound which code runs.
    pub code: Vec<String>,
    /// The claim that says what started the job.
    pub event: Option<String>,
    /// Its values under which strangers' input runs with the repository's rights.
    pub events_dangerous: Vec<String>,
    /// Its values that run code which nobody has reviewed yet.
    pub events_review: Vec<String>,
    /// The claim that says whose machine the job runs on.
    pub runner: Option<String>,
    /// Its value for a machine of the platform.
    pub runner_hosted: Option<String>,
    /// The claim that names the deployment environment.
    pub environment: Option<String>,
    /// A reusable workflow's claims.
    pub reusable: Option<Reusable>,
    /// The claim that says whether the environment has a protection.
    pub environment_protected: Option<String>,
    /// Claims that are free text of whoever writes the pipeline.
    pub free_text: Vec<String>,
    /// Two claims that differ when a fork's code runs in the parent project.
    pub fork: Option<Fork>,
    /// Claims that do not say whether they are a branch or a tag.
    pub ref_type: Option<RefType>,
    /// Claims and values that mark a debugging session or another job that must not get credentials.
    pub refuse: BTreeMap<String, Vec<String>>,
    /// Claims that are of one run of one job.
    pub run: Vec<String>,
    /// Claims (by the start of their names, where a `*` ends them) that show little, and why.
    pub weak: BTreeMap<String, String>,
    /// Claims, and what their values look like (a regular expression) where nobody chose one.
    pub catch_all: BTreeMap<String, String>,
    /// Values that are worth different credentials.
    pub apart: Vec<Apart>,
    /// Claims, and their values for code that nobody has reviewed yet.
    pub review_values: BTreeMap<String, Vec<String>>,
    /// Claims that only jobs have whose code nobody has reviewed yet.
    pub review_only: Vec<String>,
    /// How subjects end whose code nobody has reviewed yet.
    pub review_subject: Option<String>,
    /// Claims of which a rule has to name at least one, and why.
    pub demand: Vec<Demand>,
}

/// See [`LintFacts::reusable`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reusable {
    /// Names the workflow file at a ref.
    pub claim: String,
    /// Its commit.
    pub sha: String,
    /// Claims that say who calls it.
    pub caller: Vec<String>,
}

/// See [`LintFacts::fork`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// The claim that must equal the other.
    pub claim: String,
    /// The other.
    pub must_equal: String,
}

/// See [`LintFacts::ref_type`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefType {
    /// Claims with a bare ref name.
    pub claims: Vec<String>,
    /// The claim that says of which type it is; absent where the CI has none.
    #[serde(default)]
    pub by: Option<String>,
    /// Values that start so say their type themselves.
    #[serde(default)]
    pub unless_prefixed: Vec<String>,
}

/// See [`LintFacts::apart`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apart {
    /// Claims that say the same thing.
    pub claims: Vec<String>,
    /// What they may say.
    pub values: Vec<String>,
}

/// See [`LintFacts::demand`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// One of these must be matched.
    pub any_of: Vec<String>,
    /// Whether it is their absence that must be asked for.
    #[serde(default)]
    pub absent: bool,
    /// Why.
    pub because: String,
}

/// How to speak of a CI's jobs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Words {
    /// What runs: `any workflow`.
    pub any: String,
    /// Claims that say which one, each with what to say of its value: `["workflow_ref", "workflow {}"]`.
    pub which: Vec<(String, String)>,
    /// Other claims, in the order in which to speak of them.
    pub say: Vec<(String, String)>,
}

impl Default for Words {
    fn default() -> Self {
        Self { any: "any job".to_owned(), which: Vec::new(), say: Vec::new() }
    }
}

/// A claim that a first grant asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The claim.
    pub claim: String,
    /// What it is, or how to find it out.
    #[serde(default)]
    pub hint: String,
    /// The value that it has unless somebody says otherwise.
    pub default: Option<String>,
    /// Left out where there is no value.
    #[serde(default)]
    pub optional: bool,
    /// Never asked for: written where a token has this value, and nowhere else.
    pub only: Option<String>,
    /// Never asked for: the claim must not be there.
    #[serde(default)]
    pub absent: bool,
}
