//! The pipelines of the examples ask for what their grants give, with what the action and the CLI take.

use super::{
    examples, grants, public_url,
    shell::{calls, job_takes, values},
    yaml,
};
use jobpass_tests::program::root;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A job of a pipeline, whichever CI's.
struct Job<'a> {
    place: String,
    grants: &'a BTreeMap<String, Value>,
    wrong: Vec<String>,
    /// Of those the job asks for.
    asked: Vec<String>,
}

impl Job<'_> {
    fn wants(&mut self, holds: bool, what: &str) {
        if !holds {
            self.wrong.push(format!("{}: {what}", self.place));
        }
    }

    fn asks(&mut self, grant: &str) {
        self.wants(self.grants.contains_key(grant), &format!("there is no grant `{grant}`"));
        self.asked.push(grant.to_owned());
    }

    fn runs(&mut self, script: &str) {
        for call in calls(script, "jobpass") {
            if let Err(why) = job_takes(&call) {
                self.wants(false, &why);
            }
            values(&call, "--grant").into_iter().for_each(|grant| self.asks(grant));
        }
    }

    /// The matchers on this claim of the grants that the job asks for.
    fn matchers(&self, claim: &str) -> Vec<Value> {
        let grants = self.asked.iter().filter_map(|name| self.grants.get(name));
        let rules = grants.flat_map(|grant| grant["rules"].as_array().expect("rules"));
        rules.filter_map(|rule| rule["match"].get(claim).cloned()).collect()
    }
}

/// Workflows are `.yml`, grants and configs `.yaml`.
fn pipelines(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("readable").path());
    let found = entries.flat_map(|path| if path.is_dir() { pipelines(&path) } else { vec![path] });
    found.filter(|path| path.extension().is_some_and(|extension| extension == "yml")).collect()
}

fn object<'a>(value: &'a Value, key: &str) -> Vec<(&'a String, &'a Value)> {
    value[key].as_object().into_iter().flat_map(Map::iter).collect()
}

fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    }
}

/// One matcher takes all of these.
fn takes(matcher: &Value, all: &[&str]) -> bool {
    !all.is_empty() && all.iter().all(|one| texts(matcher).contains(one))
}

fn github(workflow: &Value, name: &str, definition: &Value, url: &str, job: &mut Job<'_>) {
    let action = yaml(&root().join("action/action.yml"));
    let mut checks_out = false;
    for step in definition["steps"].as_array().expect("steps") {
        job.runs(step["run"].as_str().unwrap_or_default());
        let uses = step["uses"].as_str().unwrap_or_default();
        checks_out |= uses.starts_with("actions/checkout@");
        if uses == "./action" || uses.contains("jobpass") {
            for (input, _) in object(step, "with") {
                job.wants(action["inputs"].get(input).is_some(), &format!("the action has no input `{input}`"));
            }
            step["with"]["grants"].as_str().unwrap_or_default().split_whitespace().for_each(|grant| job.asks(grant));
        }
    }
    job.wants(!job.asked.is_empty(), "it asks for nothing");
    let or_all = |key: &str| if definition[key].is_null() { workflow[key].clone() } else { definition[key].clone() };
    let permissions = or_all("permissions");
    job.wants(permissions["id-token"] == "write", "`permissions` has no `id-token: write`");
    job.wants(!checks_out || permissions["contents"] == "read", "it checks out without `contents: read`");
    let told = [&definition["env"], &workflow["env"]].map(|env| env["JOBPASS_URL"].as_str());
    job.wants(told.iter().flatten().next() == Some(&url), "JOBPASS_URL is not the server's `public_url`");
    let needs = &definition["needs"];
    job.wants(
        needs.is_null() || (needs != name && workflow["jobs"].get(texts(needs)[0]).is_some()),
        "`needs` what is not there",
    );

    // What the grants' rules say of where and when the job runs.
    for matcher in job.matchers("environment") {
        let environment = definition["environment"].as_str().unwrap_or_default();
        job.wants(takes(&matcher, &[environment]), "it does not run in the grant's `environment`");
    }
    let events: Vec<_> = object(workflow, "on").into_iter().map(|(event, _)| event.as_str()).collect();
    for matcher in job.matchers("event_name") {
        job.wants(takes(&matcher, &events), &format!("a rule has other events than {events:?}"));
    }
    for matcher in job.matchers("ref_type") {
        let kind = if workflow["on"]["push"]["tags"].is_null() { "branch" } else { "tag" };
        job.wants(takes(&matcher, &[kind]), &format!("a rule has another `ref_type` than {kind}"));
    }
}

fn gitlab(definition: &Value, url: &str, job: &mut Job<'_>) {
    for part in ["before_script", "script", "after_script"] {
        texts(&definition[part]).into_iter().for_each(|line| job.runs(line));
    }
    job.wants(!job.asked.is_empty(), "it asks for nothing");
    job.wants(definition["id_tokens"]["JOBPASS_ID_TOKEN"]["aud"] == url, "`aud` is not the server's `public_url`");
    job.wants(definition["variables"]["JOBPASS_URL"] == url, "JOBPASS_URL is not the server's `public_url`");
}

#[test]
fn pipelines_ask_for_what_there_is() {
    let (mut wrong, mut jobs) = (Vec::new(), BTreeMap::new());
    for example in examples() {
        let (grants, url) = (grants(&example), public_url(&example));
        for path in pipelines(&example) {
            let (pipeline, on_gitlab) = (yaml(&path), path.ends_with(".gitlab-ci.yml"));
            let defined = if on_gitlab {
                pipeline.as_object().expect("jobs").iter().collect()
            } else {
                object(&pipeline, "jobs")
            };
            assert!(!defined.is_empty(), "{}: no job", path.display());
            for (name, definition) in defined {
                let place = format!("{}: {name}", path.display());
                let mut job = Job { place, grants: &grants, wrong: Vec::new(), asked: Vec::new() };
                if on_gitlab {
                    gitlab(definition, &url, &mut job);
                } else {
                    github(&pipeline, name, definition, &url, &mut job);
                }
                wrong.append(&mut job.wrong);
                *jobs.entry(on_gitlab).or_insert(0) += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(jobs[&false] > 10 && jobs[&true] > 0, "pipelines were not found: {jobs:?}");
}

#[test]
fn documents_name_inputs_that_the_action_has() {
    let inputs = &yaml(&root().join("action/action.yml"))["inputs"];
    let text = fs::read_to_string(root().join("docs/job.md")).expect("readable");
    let block = text.split("```yaml\n").find(|block| block.starts_with("- uses: ./action")).expect("an example");
    let steps: Value = serde_saphyr::from_str(block.split("```").next().unwrap_or_default()).expect("YAML");
    let named = object(&steps[0], "with");
    assert!(named.len() > 3 && named.iter().all(|(input, _)| inputs.get(input).is_some()), "{named:?}");
}
