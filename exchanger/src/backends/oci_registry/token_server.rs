//! What a registry's clients ask its token server for (distribution, "Token Authentication Specification"): they
//! bring the job's token as a password, and get of it what they need now.

use super::{Access, OciRegistry, Payload};
use crate::clock::Timestamp;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, KeyPair as _, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_protocol::{LeaseId, Secret};
use std::collections::{BTreeMap, BTreeSet};

/// A token of this backend that was brought back.
pub struct Brought(Payload);

impl Brought {
    /// Of which lease it is.
    #[must_use]
    pub const fn lease(&self) -> LeaseId {
        self.0.jti
    }

    /// How long it and what is made of it are good for, in seconds.
    #[must_use]
    pub fn expires_in(&self, now: Timestamp) -> i64 {
        self.0.exp.saturating_sub(now.secs()).max(0)
    }
}

impl OciRegistry {
    /// Takes a token back in that this backend signed and that is still good.
    ///
    /// # Errors
    /// When our own key cannot be read.
    pub fn take(&self, token: &str, now: Timestamp) -> Result<Option<Brought>, String> {
        let signer = self.signer()?;
        let parts = || {
            let (signed, signature) = token.rsplit_once('.')?;
            let payload = signed.strip_prefix(&signer.header)?.strip_prefix('.')?;
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, signer.pair.public_key());
            key.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
            serde_json::from_slice::<Payload>(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
        };
        // The key may sign for another registry too.
        let ours = |payload: &Payload| payload.iss == self.issuer && payload.aud == self.service;
        Ok(parts().filter(|payload| ours(payload) && payload.exp > now.secs()).map(Brought))
    }

    /// The registry's `auth.token.service`.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Makes a token that is good for what the scopes ask for, as far as the one that was brought is.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn narrow<'a>(
        &self,
        Brought(payload): Brought,
        scopes: impl Iterator<Item = &'a str>,
        now: Timestamp,
    ) -> Result<Secret, String> {
        let mut wanted = BTreeMap::<&str, BTreeSet<&str>>::new();
        for scope in scopes.flat_map(|scope| scope.split(' ')) {
            if let Some((name, actions)) = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':')) {
                wanted.entry(name).or_default().extend(actions.split(','));
            }
        }
        let mut access = Vec::new();
        for Access { name, actions, .. } in &payload.access {
            let Some(wanted) = wanted.get(name.as_str()) else { continue };
            let actions: Vec<_> = actions.iter().filter(|action| wanted.contains(action.as_str())).copied().collect();
            if !actions.is_empty() {
                access.push(Access::to_repository(name.clone(), actions));
            }
        }
        self.sign(&Payload { access, nbf: now.secs(), iat: now.secs(), ..payload })
    }
}
