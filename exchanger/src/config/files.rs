//! The files that a server opens when it starts. What is wrong with one of them is told with its place in the
//! config, by `check-config` and before anything is served; no other command needs them.

use super::{Place, Problem};
use crate::{
    http::certificate::{Certificate, CertificateError},
    outbound::{Outbound, OutboundOptions},
    token::{self, Algorithm},
};
use std::path::PathBuf;

/// A file that serving needs, and where the config names it.
pub(super) enum Needed {
    /// The certificate to serve.
    Certificate { files: Certificate, chain: Place, key: Place },
    /// The authority of an issuer's certificate.
    Authority { path: PathBuf, place: Place },
    /// An issuer's keys, of which those of these algorithms count.
    KeySet { path: PathBuf, algorithms: Vec<String>, place: Place },
}

impl Needed {
    /// Why it cannot be used.
    pub(super) fn problem(&self) -> Option<Problem> {
        let (place, message, cure) = match self {
            Self::Certificate { files, chain, key } => {
                let error = files.open().err()?;
                let (place, cure) = match error {
                    CertificateError::Chain { .. } => (
                        chain,
                        "a PEM file that the server's user can read: the leaf's certificate, then what signed it",
                    ),
                    CertificateError::Key { .. } => {
                        (key, "a PEM file that the server's user can read: the leaf's private key, not encrypted")
                    }
                };
                (place, error.to_string(), cure)
            }
            Self::Authority { path, place } => {
                let options = OutboundOptions { ca_file: Some(path.clone()), ..OutboundOptions::default() };
                let error = Outbound::new(options).err()?;
                (place, error.to_string(), "a PEM file that the server's user can read, with at least one certificate")
            }
            Self::KeySet { path, algorithms, place } => {
                let algorithms: Vec<Algorithm> = algorithms.iter().filter_map(|name| Algorithm::named(name)).collect();
                let why = token::check_key_file(path, &algorithms).err()?;
                let message = format!("{} cannot be used: {why}", path.display());
                (place, message, "a JSON Web Key Set (RFC 7517 §5), such as the issuer publishes at its `jwks_uri`")
            }
        };
        Some(place.clone().problem(message, cure))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Env};
    use std::fs;

    const CONFIG: &str = "\
public_url: https://jobpass.example
tls: { certificate: chain.pem, key: key.pem }
state_dir: state
issuers:
  github: { ca_file: ca.pem }
  spiffe: { url: https://spire.example, algorithms: [ES256], jwks_file: keys.json }
backends: {}
policies: []
";
    const KEY: &str = r#"{"kty":"EC","crv":"P-256","alg":"ES256","kid":"a","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

    #[test]
    fn every_file_that_cannot_be_used_has_its_place_and_a_cure() {
        let pair = || rcgen::generate_simple_self_signed(["jobpass.example".to_owned()]).expect("a certificate");
        let (ours, other) = (pair(), pair());
        let (certificate, key) = (ours.cert.pem(), ours.signing_key.serialize_pem());
        let one_line = key.replace('\n', " ");
        let keys = format!(r#"{{"keys":[{KEY}]}}"#);
        let rsa = keys.replace("EC", "RSA");
        for (name, text, place, told) in [
            ("chain.pem", None, "2:21", "chain.pem cannot be used: No such file"),
            ("chain.pem", Some("hello"), "2:21", "there is no PEM certificate in it"),
            ("chain.pem", Some(key.as_str()), "2:21", "there is no PEM certificate in it"),
            (
                "chain.pem",
                Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
                "2:21",
                "chain.pem cannot be used: invalid peer certificate",
            ),
            ("key.pem", None, "2:37", "key.pem cannot be used: No such file"),
            ("key.pem", Some(certificate.as_str()), "2:37", "there is no PEM private key in it"),
            ("key.pem", Some(one_line.as_str()), "2:37", "there is no PEM private key in it"),
            (
                "key.pem",
                Some("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
                "2:37",
                "key.pem cannot be used",
            ),
            (
                "key.pem",
                Some(other.signing_key.serialize_pem().as_str()),
                "2:37",
                "not the key of the first certificate in",
            ),
            ("ca.pem", None, "5:22", "cannot use the CA file"),
            ("ca.pem", Some("hello"), "5:22", "no PEM certificate in it"),
            ("keys.json", None, "6:73", "keys.json cannot be used: No such file"),
            ("keys.json", Some("hello"), "6:73", "it is no key set"),
            ("keys.json", Some(r#"{"keys":[]}"#), "6:73", "no key that can be used"),
            ("keys.json", Some(rsa.as_str()), "6:73", "no key that can be used: `a`: "),
        ] {
            let directory = tempfile::tempdir().expect("a directory");
            let path = |name: &str| directory.path().join(name);
            let good = [("chain.pem", &certificate), ("key.pem", &key), ("ca.pem", &certificate), ("keys.json", &keys)];
            for (name, text) in good {
                fs::write(path(name), text).expect("writes");
            }
            fs::write(path("jobpass.yaml"), CONFIG).expect("writes");
            let check = || Config::load(&path("jobpass.yaml"), &Env::default()).expect("a config").check_files();
            check().expect("nothing is wrong yet");
            match text {
                Some(text) => fs::write(path(name), text).expect("writes"),
                None => fs::remove_file(path(name)).expect("removes"),
            }
            let problems = check().expect_err(told).to_string();
            for expected in [told, &format!("jobpass.yaml:{place}\n"), "^\n  = help: a "] {
                assert!(problems.contains(expected), "{name}: {expected}\n{problems}");
            }
            assert_eq!(problems.matches("\n  --> ").count(), 1, "{problems}");
            let secret = key.lines().nth(1).expect("a line");
            assert!(!problems.contains(&secret[..20]) && !problems.contains("[45, "), "a key is shown: {problems}");
        }
    }
}
