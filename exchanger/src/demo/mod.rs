//! What `demo` brings along on loopback: an issuer that behaves like a CI's, and the ledger, a small
//! API that hands out keys. The tests start the same two.
//!
//! Nothing here may be reached by `serve`: these are upstreams, not parts of the server.

pub mod issuer;
mod job;
mod keys;
pub mod ledger;
mod loopback;
pub mod tour;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use job::Ci;
pub use keys::Algorithm;

/// Why an upstream of the demo did not start or could not sign.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The loopback port could not be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where it was to listen.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system gave no random bytes, or a key could not be made or used.
    #[error("cannot {0}: the cryptographic library refused")]
    Crypto(&'static str),
    /// A token was asked for in an algorithm of which the issuer has no key.
    #[error("the issuer has no {0} key")]
    NoKey(&'static str),
}

/// The config of a server that trusts the demo's issuer and makes keys of its ledger, listening at `listen`.
#[must_use]
pub fn config(listen: &str, issuer: &str, ledger: &str, admin_token: &str) -> String {
    format!(
        "public_url: http://{listen}\nlisten: {listen}\nstate_dir: state\npolicies: [grants]\naudit: {{ file: audit.jsonl }}\n\
         issuers:\n  github: {{ url: \"{issuer}\", insecure_http: true, tenants: [\"1001\"] }}\nbackends:\n{}",
        ledger_backend(ledger, admin_token)
    )
}

/// The `http` backend `ledger`, as a block under `backends:`.
#[must_use]
pub fn ledger_backend(url: &str, admin_token: &str) -> String {
    include_str!("ledger.yaml").replace("LEDGER_URL", url).replace("ADMIN_TOKEN", admin_token)
}

/// Seconds since the epoch, as the caller tells them.
type Now = Box<dyn Fn() -> i64 + Send + Sync>;

/// A lock that a panicking test thread does not poison for the others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `N` random bytes.
fn random<const N: usize>() -> Result<[u8; N], DemoError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| DemoError::Crypto("get random bytes"))?;
    Ok(bytes)
}
