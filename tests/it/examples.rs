//! Every example is whole: its config and grants load without a word, its grants' own tests pass, and what it has
//! jobs, readers and service managers do is known to the programs that do it.

mod deployment;
mod documents;
mod shell;
mod workflows;

use jobpass_exchanger::{
    app,
    config::{Config, Env},
};
use jobpass_tests::program::root;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("examples")).expect("there are examples");
    let mut examples: Vec<PathBuf> =
        entries.map(|entry| entry.expect("readable").path()).filter(|p| p.is_dir()).collect();
    examples.sort();
    examples
}

fn yaml(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The example's grants by name.
fn grants(example: &Path) -> BTreeMap<String, Value> {
    let entries =
        fs::read_dir(example.join("grants")).expect("grants").map(|entry| yaml(&entry.expect("readable").path()));
    entries.filter_map(|grant| Some((grant["grant"].as_str()?.to_owned(), grant))).collect()
}

fn public_url(example: &Path) -> String {
    yaml(&example.join("jobpass-exchanger.yaml"))["public_url"].as_str().expect("a URL").to_owned()
}

/// The example's config, with a certificate where it names one, in a directory of the test's own.
fn with_certificate(example: &Path, directory: &Path) -> PathBuf {
    let pair = rcgen::generate_simple_self_signed(["jobpass.acme.example".to_owned()]).expect("a certificate");
    fs::write(directory.join("chain.pem"), pair.cert.pem()).expect("writes");
    fs::write(directory.join("key.pem"), pair.signing_key.serialize_pem()).expect("writes");
    symlink(example.join("grants"), directory.join("grants")).expect("links");
    let text = fs::read_to_string(example.join("jobpass-exchanger.yaml")).expect("a config");
    let config = directory.join("jobpass-exchanger.yaml");
    fs::write(&config, text.replace("/etc/jobpass/tls/", "")).expect("writes");
    config
}

#[test]
fn every_example_loads_and_passes_its_own_tests() {
    let mut checked = 0;
    for example in examples() {
        let name = example.display();
        assert!(example.join("README.md").is_file(), "{name} has no README.md");
        let directory = tempfile::tempdir().expect("a directory");
        let config = with_certificate(&example, directory.path());
        let config = Config::load(&config, &Env::default()).unwrap_or_else(|error| panic!("{name}:\n{error}"));
        let checked_now = app::check(&config).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(checked_now.diagnostics.is_empty(), "{name}:\n{}", checked_now.diagnostics.join("\n"));
        assert!(checked_now.grants > 0, "{name} has no grant");
        let failed: Vec<String> =
            checked_now.cases.results.iter().filter_map(|case| Some(case.failure.as_ref()?.render(false))).collect();
        assert!(failed.is_empty(), "{name}: {failed:#?}");
        assert!(!checked_now.cases.results.is_empty(), "{name}: its grants have no tests");
        checked += 1;
    }
    assert!(checked >= 2, "examples were not found");
}
