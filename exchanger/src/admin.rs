//! The admin commands' side of the Unix socket, and how they print.

use crate::http::admin::{
    AdminError, FreezeRequest, FreezeView, LeaseView, ReloadView, ResealView, RotateRequest, SOCKET, Selection,
};
use crate::signing::{Published, Rotation};
use anyhow::{Context as _, anyhow};
use jobpass_protocol::DecisionId;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// The client of one server's admin socket.
pub struct Admin {
    client: reqwest::Client,
    socket: PathBuf,
}

impl Admin {
    /// Reaches the server whose state is in `state_dir`.
    ///
    /// # Errors
    /// When no client can be made.
    #[expect(clippy::disallowed_methods, reason = "a Unix socket of our own: there is no address to filter")]
    pub fn of(state_dir: &Path) -> anyhow::Result<Self> {
        let socket = state_dir.join(SOCKET);
        let client = reqwest::Client::builder().unix_socket(socket.clone()).no_proxy().build()?;
        Ok(Self { client, socket })
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let response = self.client.post(format!("http://admin{path}")).json(body).send().await.with_context(|| {
            format!("no server answers on {}; is it running, and are you its user or root?", self.socket.display())
        })?;
        if response.status().is_success() {
            return Ok(response.json().await?);
        }
        let status = response.status();
        let error: AdminError = response.json().await.unwrap_or_else(|_| AdminError { error: status.to_string() });
        Err(anyhow!(error.error))
    }

    /// Leases.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn leases(&self, selection: &Selection) -> anyhow::Result<Vec<LeaseView>> {
        self.ask("/leases/list", selection).await
    }

    /// Takes leases back; returns them as they are then.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn revoke(&self, selection: &Selection) -> anyhow::Result<Vec<LeaseView>> {
        self.ask("/leases/revoke", selection).await
    }

    /// The audit entries of a decision.
    ///
    /// # Errors
    /// When the server does not answer, or does not know the decision.
    pub async fn decision(&self, id: DecisionId) -> anyhow::Result<Vec<serde_json::Value>> {
        self.ask("/decisions", &id).await
    }

    /// Freezes or thaws; returns what is frozen then.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn freeze(&self, request: &FreezeRequest) -> anyhow::Result<FreezeView> {
        self.ask("/freeze", request).await
    }

    /// What is frozen.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn freezes(&self) -> anyhow::Result<FreezeView> {
        self.ask("/freezes", &()).await
    }

    /// The signing keys.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn keys(&self) -> anyhow::Result<Vec<Published>> {
        self.ask("/keys", &()).await
    }

    /// Makes new signing keys.
    ///
    /// # Errors
    /// When the server does not answer or cannot write the key.
    pub async fn rotate(&self, rotation: Rotation) -> anyhow::Result<Vec<Published>> {
        self.ask("/keys/rotate", &RotateRequest { rotation }).await
    }

    /// Reads the sealing keys again, and seals anew what the first one did not seal.
    ///
    /// # Errors
    /// When the server does not answer, a key is missing, or the store cannot be written.
    pub async fn reseal(&self) -> anyhow::Result<ResealView> {
        self.ask("/keys/reseal", &()).await
    }

    /// Reads the policy directories again now.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn reload(&self) -> anyhow::Result<ReloadView> {
        self.ask("/policies/reload", &()).await
    }
}

/// Leases as a table for people.
#[must_use]
pub fn lease_table(leases: &[LeaseView]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{:36}  {:10} {:20} {:14} {:14} opened", "lease", "state", "grant", "issuer", "backend");
    for lease in leases {
        let _ = writeln!(
            out,
            "{:36}  {:10} {:20} {:14} {:14} {}",
            lease.id.to_string(),
            lease.state.name(),
            lease.grant,
            lease.issuer,
            lease.backend,
            lease.opened_at
        );
    }
    out
}
