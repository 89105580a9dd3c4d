//! OpenSSH's sshd and `ssh`, with an authority of each kind.

use super::{System, Try};
use jobpass_tests::{
    http::client,
    server::{Server, Setup},
    sshd::{KeyType, Sshd},
};
use serde_json::{Value, json};
use std::marker::PhantomData;

pub(super) trait Authority {
    const KEY: KeyType;
}
pub(super) struct Ed25519;
impl Authority for Ed25519 {
    const KEY: KeyType = KeyType::Ed25519;
}
pub(super) struct Ecdsa;
impl Authority for Ecdsa {
    const KEY: KeyType = KeyType::Ecdsa;
}
pub(super) struct Rsa;
impl Authority for Rsa {
    const KEY: KeyType = KeyType::Rsa;
}

pub(super) struct Host<A>(Sshd, PhantomData<A>);

impl<A> Host<A> {
    async fn login(&self, credential: &Value, user: Option<&str>, options: &[&str]) -> Result<(), String> {
        let certificate = credential["certificate"].as_str().expect("a certificate");
        let before = self.0.log().len();
        // The command is not what the client asks for.
        let done = self.0.login(certificate, user, options, "echo mine").await;
        match done.log.trim() {
            "deployed 772002" if done.status.success() => Ok(()),
            _ => Err(format!("{}\n{}", done.log, &self.0.log()[before..])),
        }
    }
}

impl<A: Authority> System for Host<A> {
    const GONE: [&str; 2] = ["revoked by file", "Certificate invalid: expired"];

    async fn start() -> Self {
        Self(Sshd::start(A::KEY).await, PhantomData)
    }

    fn backend(&self, setup: &Setup) -> Value {
        json!({ "ssh": { "ca_key": setup.secret("ca", &self.0.file("ca")), "principals": ["deploy"] } })
    }

    fn credential(&self) -> Value {
        json!({
            "principals": ["deploy"], "force_command": "echo deployed {{ claims.repository_id }}",
            "source_address": ["127.0.0.1/32"], "extensions": { "run@jobpass.example": "{{ claims.repository_id }}" },
        })
    }

    fn form(&self) -> Vec<(&'static str, String)> {
        vec![("public_key", self.0.file("job.pub"))]
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        self.login(credential, None, &[]).await
    }

    async fn overstepped(&self, credential: &Value) -> Vec<Try> {
        vec![
            (
                "another user",
                "Certificate does not contain an authorized principal",
                self.login(credential, Some("nobody"), &[]).await,
            ),
            (
                "another address",
                "not from a permitted source address",
                self.login(credential, None, &["-b", "127.0.0.2"]).await,
            ),
            ("a terminal", "PTY allocation request failed", self.login(credential, None, &["-tt"]).await),
            (
                "a forwarded port",
                "remote port forwarding failed",
                self.login(credential, None, &["-R", "127.0.0.1:0:127.0.0.1:1"]).await,
            ),
        ]
    }

    fn steps(&self) -> Vec<(&'static [&'static str], String)> {
        let ssh = format!("ssh {} 127.0.0.1 echo mine", self.0.options().join(" "));
        vec![(&[], format!("test \"$({ssh})\" = 'deployed 772002'; ! SSH_AUTH_SOCK= {ssh}"))]
    }

    async fn fetch_list(&self, server: &Server) -> bool {
        let get = async |document: &str| {
            let answer = client().get(format!("{}/ssh/system/{document}", server.url)).send().await;
            let answer = answer.expect("the server answers").error_for_status().expect("it is published");
            answer.bytes().await.expect("it arrives whole")
        };
        self.0.revoke(&get("krl").await);
        // The published key is the one that hosts trust.
        self.0.trust(std::str::from_utf8(&get("ca.pub").await).expect("text"));
        true
    }
}
