//! Signed heads: what the chain ended in at some time, vouched for by one of our keys.
//!
//! Whoever keeps a head elsewhere can tell later that the log was cut or written anew.

use super::{
    Link,
    chain::{hex_of_hash, parse_hash},
};
use crate::clock::Timestamp;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

const DOMAIN: &str = "jobpass audit head, version 1";

/// Signs with one of the server's keys.
pub trait Sign: Send + Sync {
    /// The `kid` of the key, and the signature in the form of RFC 7518 §3 for that key's `alg`.
    ///
    /// # Errors
    /// Why there is no signature, without a secret.
    fn sign(&self, message: &[u8]) -> Result<(String, Vec<u8>), String>;
}

/// The end of the chain at some time, as it is streamed: one line `{"head":{…}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Number of the last entry.
    pub seq: u64,
    /// Its hash, in hex.
    pub hash: String,
    /// When, as RFC 3339.
    pub at: String,
    /// Which key signed.
    pub kid: String,
    /// Over the message of [`Head::message`], in base64url.
    pub signature: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    head: Head,
}

impl Head {
    /// Signs the end of a chain.
    ///
    /// # Errors
    /// When the keys cannot sign.
    pub fn sign(link: Link, at: Timestamp, keys: &dyn Sign) -> Result<Self, String> {
        let hash = hex_of_hash(&link.hash, &mut [0; 64]).to_owned();
        let at = at.to_string();
        let (kid, signature) = keys.sign(message(link.seq, &hash, &at).as_bytes())?;
        Ok(Self { seq: link.seq, hash, at, kid, signature: URL_SAFE_NO_PAD.encode(signature) })
    }

    /// What is signed: a fixed text, number, hash and time, one a line.
    #[must_use]
    pub fn message(&self) -> String {
        message(self.seq, &self.hash, &self.at)
    }

    /// The link that it vouches for; `None` when its hash is not one.
    #[must_use]
    pub fn link(&self) -> Option<Link> {
        parse_hash(&self.hash).map(|hash| Link { seq: self.seq, hash })
    }

    /// The line as it is streamed, without the line feed.
    #[must_use]
    pub fn to_text(&self) -> String {
        // Strings and a number always serialise.
        serde_json::to_string(&Wire { head: self.clone() }).unwrap_or_default()
    }

    /// Reads such a line.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str::<Wire>(text).ok().map(|wire| wire.head)
    }
}

fn message(seq: u64, hash: &str, at: &str) -> String {
    format!("{DOMAIN}\n{seq}\n{hash}\n{at}\n")
}
