//! What the tests of policies share.

use jobpass_policy::{AnyCredential, Claims, Compiled, Issuer, Source, compile, fixtures::fixture};
use jobpass_protocol::IssuerName;
use std::sync::Arc;

/// The grant of the design, as a platform admin writes it.
pub(crate) const DEPLOY: &str = include_str!("deploy-prod.yaml");

pub(crate) fn issuer(name: &str) -> Issuer {
    Issuer::assumed(&IssuerName::parse(name).expect("a name")).expect("a profile")
}

pub(crate) fn compile_texts(texts: &[&str]) -> Compiled {
    let sources: Vec<_> = (texts.iter().enumerate())
        .map(|(n, text)| Source { path: format!("grants/{n}.yaml"), text: (*text).to_owned() })
        .collect();
    compile(&sources, &[issuer("github"), issuer("gitlab")], &AnyCredential)
}

/// A fixture's claims with members replaced, or taken away by null.
pub(crate) fn claims(name: &str, changes: serde_json::Value) -> Arc<Claims> {
    let mut payload: serde_json::Value = serde_json::from_str(fixture(name).expect("a fixture")).expect("JSON");
    for (member, value) in changes.as_object().expect("an object") {
        payload[member] = value.clone();
    }
    let profile = issuer(name.split('/').next().expect("a profile")).profile;
    Arc::new(Claims::parse(&profile, payload.to_string().as_bytes()).expect("claims"))
}
