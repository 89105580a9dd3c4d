//! The admin commands' side of the Unix socket, and how they print.

use crate::http::admin::{
    AdminError, FreezeRequest, FreezeView, LeaseView, Listing, ReloadView, ResealView, RotateRequest, SOCKET, Selection,
};
use crate::{
    leases::{Outlives, State},
    signing::{Published, Rotation},
};
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
    pub async fn leases(&self, selection: &Selection) -> anyhow::Result<Listing> {
        self.ask("/leases/list", selection).await
    }

    /// Takes leases back; returns them as they are then.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn revoke(&self, selection: &Selection) -> anyhow::Result<Listing> {
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
    let mut row = |cells: [&str; 7]| {
        let [lease, state, grant, issuer, backend, opened, more] = cells;
        let row = format!("{lease:36}  {state:10} {grant:20} {issuer:14} {backend:14} {opened:24} {more}");
        let _ = writeln!(out, "{}", row.trim_end());
    };
    row(["lease", "state", "grant", "issuer", "backend", "opened", ""]);
    for lease in leases {
        let (id, opened) = (lease.id.to_string(), lease.opened_at.to_string());
        let more = detail(&lease.state);
        row([&id, lease.state.name(), &lease.grant, &lease.issuer, &lease.backend, &opened, &more]);
    }
    out
}

/// What a state's name leaves open.
fn detail(state: &State) -> String {
    match state {
        State::Pending { .. } => String::new(),
        State::Active { expires_at } => format!("until {expires_at}"),
        State::Revoking { attempts: 0, .. } => String::new(),
        State::Revoking { attempts, next_at, .. } => format!("tried {attempts} times, again at {next_at}"),
        State::Outliving { until, why: Outlives::Irrevocable, .. } => format!("until {until}: it cannot be taken back"),
        State::Outliving { until, why: Outlives::OutcomeUnknown, .. } => {
            format!("until {until}: nobody knows whether it came to be")
        }
        State::Ended { how, .. } => how.name().to_owned(),
    }
}
