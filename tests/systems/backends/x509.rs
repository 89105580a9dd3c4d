//! A TLS server and client of OpenSSL's.

use super::{System, Try};
use jobpass_tests::{
    http::client,
    mtls::MutualTls,
    program::Program,
    server::{Server, Setup},
};
use serde_json::{Value, json};
use std::fs;

pub(super) struct Mesh(MutualTls);

impl Mesh {
    async fn openssl(&self, command: &str, arguments: &[&str]) -> Result<String, String> {
        let mut openssl = self.0.openssl(command);
        openssl.args(arguments);
        let done = Program::run(openssl).await;
        if done.status.success() { Ok(done.log) } else { Err(done.log) }
    }
}

fn certificate(credential: &Value) -> &str {
    credential["certificate"].as_str().expect("a certificate")
}

impl System for Mesh {
    const GONE: [&str; 2] = ["certificate revoked", "certificate has expired"];

    async fn start() -> Self {
        Self(MutualTls::start().await)
    }

    fn backend(&self, setup: &Setup) -> Value {
        let key = fs::read_to_string(self.0.path("ca.key")).expect("the file is there");
        let key = setup.secret("ca-key", &key);
        json!({ "x509": { "ca_certificate": self.0.path("ca.pem"), "ca_key": key, "trust_domain": "acme.example" } })
    }

    fn credential(&self) -> Value {
        json!({
            "spiffe_id": "spiffe://acme.example/ci/{{ claims.repository_id }}",
            "subject": { "common_name": "repo {{ claims.repository_id }}" },
            "extensions": { "1.3.6.1.4.1.57264.1.12": "{{ claims.repository }}" },
        })
    }

    fn form(&self) -> Vec<(&'static str, String)> {
        vec![("csr", fs::read_to_string(self.0.path("job.pem")).expect("the file is there"))]
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        fs::write(self.0.path("leaf.pem"), certificate(credential)).expect("the directory is ours");
        let text = self.openssl("x509", &["-in", "leaf.pem", "-noout", "-text"]).await?;
        for expected in ["Subject: CN = repo 772002", "URI:spiffe://acme.example/ci/772002", "acme/api", "CA:FALSE"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        self.0.get(certificate(credential)).await
    }

    async fn overstepped(&self, credential: &Value) -> Vec<Try> {
        fs::write(self.0.path("leaf.pem"), certificate(credential)).expect("the directory is ours");
        let sign = ["-req", "-in", "job.pem", "-CA", "leaf.pem", "-CAkey", "job.key", "-out", "made.pem"];
        self.openssl("x509", &sign).await.expect("anybody can sign");
        let verify = async |arguments: &[&str]| self.openssl("verify", arguments).await.map(|_| ());
        verify(&["-CAfile", "ca.pem", "-purpose", "sslclient", "leaf.pem"]).await.expect("it is for clients");
        vec![
            (
                "to be a server",
                "certificate purpose",
                verify(&["-CAfile", "ca.pem", "-purpose", "sslserver", "leaf.pem"]).await,
            ),
            (
                "to be an authority",
                "invalid CA certificate",
                verify(&["-CAfile", "ca.pem", "-untrusted", "leaf.pem", "made.pem"]).await,
            ),
            (
                "a certificate of its own making",
                "unable to get local issuer certificate",
                self.0.get(&fs::read_to_string(self.0.path("made.pem")).expect("made")).await,
            ),
        ]
    }

    fn steps(&self) -> Vec<(&'static [&'static str], String)> {
        let get = |certificate: &str, key: &str| format!("{} 2>&1 | grep '200 ok'", self.0.request(certificate, key));
        vec![
            (&[], get("\"$JOBPASS_CERTIFICATE\"", "\"$JOBPASS_PRIVATE_KEY\"")),
            (&["--file", "PEM=pem"], get("\"$PEM\"", "\"$PEM\"")),
        ]
    }

    async fn fetch_list(&self, server: &Server) -> bool {
        let answer = client().get(format!("{}/x509/system/crl.pem", server.url)).send().await;
        let answer = answer.expect("the server answers").error_for_status().expect("it is published");
        self.0.revoke(&answer.bytes().await.expect("it arrives whole")).await;
        true
    }
}
