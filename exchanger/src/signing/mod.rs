//! Our own keys: what the tokens that we sign are signed with, and what others check them by.
//!
//! A key's file is written once and never changed: it holds the key and since when it signs. All else
//! follows from the clock. Of an algorithm's keys the newest whose time has come is *active*; newer
//! ones are *next* and already published, so that every reader's cache knows them before they sign;
//! older ones are *retired* and stay published until the longest token that they could have signed has
//! expired. This module never signs a token that would outlive its key's publication.

mod disk;
mod key;

pub use disk::KeysError;
pub use key::{Algorithm, KeyType, SigningKey, Unusable};

use crate::{
    audit::Sign,
    clock::{Clock, Timestamp},
};
use arc_swap::ArcSwap;
use jobpass_protocol::{CompactJwt, LeaseId, Secret};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long readers may cache the key set: the `max-age` of its `Cache-Control`.
pub const JWKS_MAX_AGE: Duration = Duration::from_secs(300);

/// How keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A key is kept for each; the first is what tokens are signed with where nothing else is said.
    pub types: Vec<KeyType>,
    /// How long a new key is published before it signs. Not less than [`JWKS_MAX_AGE`].
    pub propagation: Duration,
    /// No token lives longer; a retired key is published this long. Lowering it forgets retired keys sooner.
    pub max_lifetime: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            types: vec![KeyType::Es256],
            propagation: JWKS_MAX_AGE * 2,
            max_lifetime: Duration::from_secs(24 * 3600),
        }
    }
}

/// Why no token was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No key of that algorithm is kept.
    #[error("no {0} key is kept: add it to the signing keys in the config")]
    NoKey(Algorithm),
    /// The token would outlive the publication of its key.
    #[error("a signed token may live {0} seconds at most")]
    TooLong(u64),
    /// The claims do not serialise, or cryptography refused.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

/// How new keys take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// The new key is published first and signs after the propagation time; the old one stays published.
    Overlapping,
    /// The old keys are thrown away and the new ones sign at once: tokens that the old ones signed are
    /// refused as soon as readers fetch the key set again. For a key that leaked.
    AtOnce,
}

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Published, and not signing yet.
    Next,
    /// Signing.
    Active,
    /// Published for the tokens that it signed.
    Retired,
}

/// One published key, as an admin sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The key's id.
    pub kid: String,
    /// What it signs with.
    pub algorithm: Algorithm,
    /// Where it stands.
    pub standing: Standing,
}

struct Held {
    key: SigningKey,
    signs_from: Timestamp,
}

/// Our keys, parsed and held.
pub struct Keys {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    settings: Settings,
    /// Ordered by `signs_from`.
    held: ArcSwap<Vec<Arc<Held>>>,
    rotating: Mutex<()>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("dir", &self.dir).field("published", &self.published()).finish_non_exhaustive()
    }
}

/// Vouches for the audit log with the key that tokens are signed with where nothing else is said.
impl Sign for Keys {
    fn sign(&self, message: &[u8]) -> Result<(String, Vec<u8>), String> {
        let held = self.held.load();
        let algorithm = self.settings.types.first().ok_or("no signing keys are configured")?.algorithm();
        let active = active(&held, algorithm, self.clock.now()).ok_or("no signing key is active")?;
        let signature = active.key.sign(message).map_err(|error| error.to_string())?;
        Ok((active.key.id().to_owned(), signature))
    }
}

impl Keys {
    /// Reads the keys in `dir` and makes those that are missing. A type that replaces another one of
    /// its algorithm (RS256 with more bits) is rotated in with overlap.
    ///
    /// # Errors
    /// When the directory or a key in it cannot be used; see [`KeysError`].
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, settings: Settings) -> Result<Arc<Self>, KeysError> {
        disk::prepare(dir)?;
        let mut held = disk::read_all(dir)?;
        held.sort_by_key(|held| held.signs_from);
        let held = ArcSwap::from_pointee(held.into_iter().map(Arc::new).collect());
        let keys = Self { dir: dir.to_owned(), clock, settings, held, rotating: Mutex::new(()) };
        for kind in &keys.settings.types {
            let newest = keys.of(kind.algorithm()).last().map(|held| held.key.kind());
            if newest != Some(*kind) {
                keys.add(*kind, if newest.is_some() { keys.settings.propagation } else { Duration::ZERO })?;
            }
        }
        keys.forget_expired();
        Ok(Arc::new(keys))
    }

    /// The algorithms that there are keys for; the first one is the default.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        self.settings.types.iter().map(|kind| kind.algorithm())
    }

    /// No token that we sign lives longer.
    #[must_use]
    pub const fn max_lifetime(&self) -> Duration {
        self.settings.max_lifetime
    }

    /// The JSON Web Key Set (RFC 7517 §5): public keys only. Cacheable for [`JWKS_MAX_AGE`].
    #[must_use]
    pub fn jwks(&self) -> String {
        let now = self.clock.now();
        let held = self.held.load();
        let keys: Vec<&str> = held
            .iter()
            .filter(|key| standing(&held, key, now, &self.settings).is_some())
            .map(|key| key.key.jwk())
            .collect();
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    }

    /// The published keys, oldest first.
    #[must_use]
    pub fn published(&self) -> Vec<Published> {
        let now = self.clock.now();
        let held = self.held.load();
        held.iter()
            .filter_map(|key| {
                let standing = standing(&held, key, now, &self.settings)?;
                Some(Published { kid: key.key.id().to_owned(), algorithm: key.key.kind().algorithm(), standing })
            })
            .collect()
    }

    /// Signs claims as a JWT that expires at `expires_at`. The header's `typ` is `JWT`, which every
    /// cloud's web identity federation takes, and not RFC 9068's `at+jwt`, which some refuse.
    ///
    /// # Errors
    /// See [`SignError`].
    pub fn sign_jwt(
        &self,
        algorithm: Algorithm,
        expires_at: Timestamp,
        claims: &impl Serialize,
    ) -> Result<Secret, SignError> {
        let now = self.clock.now();
        if expires_at.since(now) > self.settings.max_lifetime {
            return Err(SignError::TooLong(self.settings.max_lifetime.as_secs()));
        }
        let held = self.held.load();
        let active = active(&held, algorithm, now).ok_or(SignError::NoKey(algorithm))?;
        Ok(active.key.sign_jwt(claims)?)
    }

    /// The lease of an access token that we signed, expired or not; `None` for any other text. Only
    /// tokens for jobs have a lease id as their `jti`.
    #[must_use]
    pub fn verify_own(&self, token: &str) -> Option<LeaseId> {
        #[derive(Deserialize)]
        struct OwnClaims<'a> {
            jti: &'a str,
        }
        let jwt = CompactJwt::parse(token).ok()?;
        let held = self.held.load();
        let signer = held.iter().find(|held| Some(held.key.id()) == jwt.header.key_id.as_deref())?;
        let matches = signer.key.kind().algorithm().as_str() == jwt.header.algorithm
            && signer.key.verifies(jwt.signing_input().as_bytes(), jwt.signature());
        let claims: OwnClaims<'_> = matches.then(|| serde_json::from_slice(jwt.payload()).ok())??;
        claims.jti.parse().ok()
    }

    /// Makes a new key for each configured type, and deletes the files of keys that are over.
    ///
    /// # Errors
    /// When a new key cannot be written. Keys that were written until then stay.
    pub fn rotate(&self, rotation: Rotation) -> Result<Vec<Published>, KeysError> {
        let before = self.held.load_full();
        for kind in &self.settings.types {
            let wait = if rotation == Rotation::Overlapping { self.settings.propagation } else { Duration::ZERO };
            self.add(*kind, wait)?;
        }
        match rotation {
            Rotation::Overlapping => self.forget_expired(),
            Rotation::AtOnce => self.forget(|held| before.iter().any(|old| Arc::ptr_eq(old, held))),
        }
        Ok(self.published())
    }

    fn of(&self, algorithm: Algorithm) -> Vec<Arc<Held>> {
        self.held.load().iter().filter(|held| held.key.kind().algorithm() == algorithm).cloned().collect()
    }

    fn add(&self, kind: KeyType, wait: Duration) -> Result<(), KeysError> {
        let _one_at_a_time = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, text) = SigningKey::generate(kind)?;
        let held = Held { key, signs_from: self.clock.now() + wait };
        disk::write(&self.dir, &held, &text)?;
        let mut all = self.held.load().to_vec();
        all.push(Arc::new(held));
        all.sort_by_key(|held| held.signs_from);
        self.held.store(Arc::new(all));
        Ok(())
    }

    /// Drops the keys that nobody needs any more.
    fn forget_expired(&self) {
        let now = self.clock.now();
        let all = self.held.load_full();
        self.forget(|held| standing(&all, held, now, &self.settings).is_none());
    }

    fn forget(&self, which: impl Fn(&Arc<Held>) -> bool) {
        let _one_at_a_time = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        let (gone, kept): (Vec<_>, Vec<_>) = self.held.load().iter().cloned().partition(which);
        self.held.store(Arc::new(kept));
        for held in gone {
            disk::remove(&self.dir, held.key.id());
        }
    }
}

/// The newest key of an algorithm whose time has come; the oldest of all while none has (a clock that
/// was set back must not stop the signing).
fn active(held: &[Arc<Held>], algorithm: Algorithm, now: Timestamp) -> Option<&Arc<Held>> {
    let mut of_it = held.iter().filter(|held| held.key.kind().algorithm() == algorithm);
    of_it.clone().rfind(|held| held.signs_from <= now).or_else(|| of_it.next())
}

/// Where a key stands; `None` when it is over.
fn standing(held: &[Arc<Held>], key: &Arc<Held>, now: Timestamp, settings: &Settings) -> Option<Standing> {
    let algorithm = key.key.kind().algorithm();
    if active(held, algorithm, now).is_some_and(|active| Arc::ptr_eq(active, key)) {
        return Some(Standing::Active);
    }
    if key.signs_from > now {
        return Some(Standing::Next);
    }
    let successor =
        held.iter().find(|other| other.key.kind().algorithm() == algorithm && other.signs_from > key.signs_from)?;
    let over_at = successor.signs_from + settings.max_lifetime + JWKS_MAX_AGE;
    (now < over_at).then_some(Standing::Retired)
}

#[cfg(test)]
mod tests;
