//! Sealing: what a lease must keep of a credential so that it can be taken back, unreadable on disk.
//!
//! AES-256-GCM with a random nonce. The lease's id, its backend and the column are associated data, so a
//! sealed text that was moved to another row does not open. The key comes from outside the state
//! directory and is never written there; a store that is stolen alone gives nothing away.
//! A [`Sealed`] is made here and read back by the store, and nowhere else: plain text cannot be stored by
//! mistake.

use crate::{
    config::{Env, SecretError, SecretRef},
    leases::Lease,
    store::PendingLease,
};
use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jobpass_protocol::{BackendName, LeaseId, Secret};
use sha2::{Digest as _, Sha256};
use std::{fmt, sync::Arc};
use zeroize::Zeroizing;

/// What stands before every sealed text.
const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const HEAD: usize = 1 + ID_BYTES + NONCE_LEN;
const ID_BYTES: usize = 8;
/// The one column that is sealed.
const COLUMN: &str = "leases.sealed";
/// What the check value says.
const CHECK: &str = "jobpass";

/// A sealed text: version, key id, nonce, ciphertext and tag.
///
/// INVARIANT: made by [`Sealing`], or read back from where one was stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(Arc<[u8]>);

impl Sealed {
    /// What the store wrote.
    pub(crate) fn stored(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// What the store is to write.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key that it needs; none if it is no sealed text.
    #[must_use]
    pub fn key(&self) -> Option<KeyId> {
        match self.0.split_first_chunk::<HEAD>() {
            Some((head, _)) if head[0] == VERSION => head[1..=ID_BYTES].try_into().ok().map(KeyId),
            _ => None,
        }
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed")
    }
}

/// Names a key by its hash, and tells nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyId([u8; ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// No key is configured.
    #[error("no sealing key is configured: set `sealing: {{ keys: file:/path }}` (a key: `openssl rand -base64 32`)")]
    NoKey,
    /// The reference gives nothing.
    #[error("sealing.keys: {0}")]
    Reference(#[from] SecretError),
    /// A line is not a key.
    #[error(
        "sealing.keys: line {line} of {reference} is not a key: expected 32 bytes in base64 (`openssl rand -base64 32`)"
    )]
    NotAKey {
        /// Where.
        reference: SecretRef,
        /// Counted from one.
        line: usize,
    },
    /// It was sealed with a key that is not there any more.
    #[error(
        "what the store keeps was sealed with the key {key}, which is not among the configured ones ({known}): add that key again as a further line of `sealing.keys`"
    )]
    UnknownKey {
        /// The key's id.
        key: KeyId,
        /// The ids of those that there are.
        known: String,
    },
    /// The lease keeps nothing.
    #[error("the lease keeps nothing sealed")]
    Nothing,
    /// It does not open: changed, or moved from elsewhere.
    #[error("what is sealed does not open: it was changed, or belongs to another row")]
    Broken,
}

struct Key {
    id: KeyId,
    key: RandomizedNonceKey,
}

/// Seals, and opens what was sealed.
pub struct Sealing {
    reference: Option<SecretRef>,
    env: Env,
    /// The first seals; all open.
    keys: ArcSwap<Vec<Key>>,
}

impl Sealing {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(reference: Option<SecretRef>, env: Env) -> Self {
        Self { reference, env, keys: ArcSwap::default() }
    }

    /// Whether the config names keys.
    #[must_use]
    pub const fn configured(&self) -> bool {
        self.reference.is_some()
    }

    /// Reads the keys (again), one a line in base64. The first seals from now on.
    ///
    /// # Errors
    /// When there is none, or a line is none; the keys that there were stay.
    pub fn load(&self) -> Result<(), SealingError> {
        let reference = self.reference.as_ref().ok_or(SealingError::NoKey)?;
        let text = reference.read(&self.env)?;
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.expose().lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let not = || SealingError::NotAKey { reference: reference.clone(), line: number };
            let bytes = Zeroizing::new(STANDARD.decode(line).map_err(|_| not())?);
            if bytes.len() != KEY_BYTES {
                return Err(not());
            }
            let digest = Sha256::new().chain_update("jobpass sealing key\0").chain_update(&*bytes).finalize();
            let id = KeyId(digest[..ID_BYTES].try_into().map_err(|_| not())?);
            keys.push(Key { id, key: RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| not())? });
        }
        if keys.is_empty() {
            return Err(SealingError::NotAKey { reference: reference.clone(), line: 1 });
        }
        self.keys.store(Arc::new(keys));
        Ok(())
    }

    /// The key that seals now.
    ///
    /// # Errors
    /// [`SealingError::NoKey`].
    pub fn active(&self) -> Result<KeyId, SealingError> {
        self.keys.load().first().map(|key| key.id).ok_or(SealingError::NoKey)
    }

    /// Has a lease in the making keep what is needed to take its credential back.
    ///
    /// # Errors
    /// [`SealingError::NoKey`].
    pub fn keep(&self, pending: &PendingLease, text: &Secret) -> Result<(), SealingError> {
        let lease = pending.lease();
        pending.keep(self.seal(&of_lease(lease.id(), &lease.placement().backend), text)?);
        Ok(())
    }

    /// What a lease keeps.
    ///
    /// # Errors
    /// When it keeps nothing, or what it keeps does not open.
    pub fn open(&self, lease: &Lease) -> Result<Secret, SealingError> {
        let sealed = lease.sealed().ok_or(SealingError::Nothing)?;
        self.unseal(&of_lease(lease.id(), &lease.placement().backend), sealed)
    }

    /// The same under the key that seals now; `None` when it is already.
    pub(crate) fn anew(&self, lease: &Lease) -> Result<Option<Sealed>, SealingError> {
        if lease.sealed().and_then(Sealed::key) == Some(self.active()?) {
            return Ok(None);
        }
        let text = self.open(lease)?;
        self.seal(&of_lease(lease.id(), &lease.placement().backend), &text).map(Some)
    }

    /// A value by which a later start knows the key.
    pub(crate) fn check_value(&self) -> Result<Sealed, SealingError> {
        self.seal(CHECK.as_bytes(), &Secret::from(CHECK))
    }

    /// Whether the keys open what an earlier start left: the check value, or a lease's key.
    pub(crate) fn knows_check(&self, check: &Sealed) -> Result<(), SealingError> {
        self.unseal(CHECK.as_bytes(), check).map(drop)
    }

    /// See [`Sealing::knows_check`].
    pub(crate) fn knows(&self, sealed: &Sealed) -> Result<(), SealingError> {
        let keys = self.keys.load();
        find(&keys, sealed).map(drop)
    }

    fn seal(&self, associated: &[u8], text: &Secret) -> Result<Sealed, SealingError> {
        let keys = self.keys.load();
        let key = keys.first().ok_or(SealingError::NoKey)?;
        let mut body = Zeroizing::new(text.expose().as_bytes().to_vec());
        let nonce = key.key.seal_in_place_append_tag(Aad::from(associated), &mut *body);
        let nonce = nonce.map_err(|_| SealingError::Broken)?;
        Ok(Sealed([&[VERSION][..], &key.id.0, nonce.as_ref(), &body].concat().into()))
    }

    fn unseal(&self, associated: &[u8], sealed: &Sealed) -> Result<Secret, SealingError> {
        let keys = self.keys.load();
        let key = find(&keys, sealed)?;
        let nonce =
            Nonce::try_assume_unique_for_key(&sealed.0[1 + ID_BYTES..HEAD]).map_err(|_| SealingError::Broken)?;
        let mut body = Zeroizing::new(sealed.0[HEAD..].to_vec());
        let plain = key.key.open_in_place(nonce, Aad::from(associated), &mut body).map_err(|_| SealingError::Broken)?;
        std::str::from_utf8(plain).map(Secret::from).map_err(|_| SealingError::Broken)
    }
}

fn find<'k>(keys: &'k [Key], sealed: &Sealed) -> Result<&'k Key, SealingError> {
    let wanted = sealed.key().ok_or(SealingError::Broken)?;
    keys.iter().find(|key| key.id == wanted).ok_or_else(|| {
        let known: Vec<String> = keys.iter().map(|key| key.id.to_string()).collect();
        SealingError::UnknownKey { key: wanted, known: known.join(", ") }
    })
}

/// Where a sealed text belongs. The id has a fixed length, and no backend's name holds a NUL.
fn of_lease(lease: LeaseId, backend: &BackendName) -> Vec<u8> {
    [&lease.as_bytes()[..], backend.as_str().as_bytes(), b"\0", COLUMN.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn line(byte: u8) -> String {
        STANDARD.encode([byte; KEY_BYTES])
    }

    fn sealing(lines: &str) -> Result<Sealing, SealingError> {
        let env = Env::of([("KEYS", lines.to_owned())]);
        let sealing = Sealing::new(SecretRef::try_from("env:KEYS".to_owned()).ok(), env);
        sealing.load().map(|()| sealing)
    }

    #[test]
    fn keys() {
        for (lines, error) in [
            (line(1), None),
            (format!("# new\n{}\n\n  {}\n", line(2), line(1)), None),
            ("AAAA".to_owned(), Some("line 1 of env:KEYS is not a key")),
            (format!("{}\nhunter2", line(1)), Some("line 2 of env:KEYS is not a key")),
            ("# none".to_owned(), Some("not a key")),
        ] {
            match (sealing(&lines), error) {
                (Ok(sealing), None) => drop(sealing.active().expect("a key")),
                (Err(found), Some(text)) => {
                    assert!(found.to_string().contains(text) && !found.to_string().contains("hunter2"), "{found}");
                }
                (found, _) => panic!("{lines}: {:?}", found.err()),
            }
        }
        let none = Sealing::new(None, Env::default());
        assert!(!none.configured() && matches!(none.load(), Err(SealingError::NoKey)));
    }

    #[test]
    fn only_the_same_row_and_a_known_key_open_it() {
        let old = sealing(&line(1)).expect("keys");
        let both = sealing(&format!("{}\n{}", line(2), line(1))).expect("keys");
        let new = sealing(&line(2)).expect("keys");
        let id = |n| LeaseId::from_uuid(Uuid::from_u128(n));
        let (one, other) = (BackendName::parse("one").expect("a name"), BackendName::parse("other").expect("a name"));
        let here = of_lease(id(1), &one);
        let sealed = old.seal(&here, &Secret::from("hunter2")).expect("sealed");
        assert!(!sealed.bytes().windows(7).any(|window| window == b"hunter2"));
        assert_ne!(sealed, old.seal(&here, &Secret::from("hunter2")).expect("sealed"), "nonces differ");
        for sealing in [&old, &both] {
            assert_eq!(sealing.unseal(&here, &sealed).expect("opens").expose(), "hunter2");
        }
        for elsewhere in [of_lease(id(2), &one), of_lease(id(1), &other), CHECK.as_bytes().to_vec()] {
            assert!(matches!(old.unseal(&elsewhere, &sealed), Err(SealingError::Broken)));
        }
        let error = new.unseal(&here, &sealed).expect_err("unknown").to_string();
        assert!(error.contains(&sealed.key().expect("a key").to_string()), "{error}");
        for at in 0..sealed.bytes().len() {
            let mut bytes = sealed.bytes().to_vec();
            bytes[at] ^= 1;
            assert!(old.unseal(&here, &Sealed::stored(&bytes)).is_err(), "byte {at}");
        }
        for cut in [0, 1, HEAD - 1, HEAD, HEAD + 3] {
            assert!(old.unseal(&here, &Sealed::stored(&sealed.bytes()[..cut])).is_err(), "cut at {cut}");
        }
        let check = old.check_value().expect("sealed");
        assert!(both.knows_check(&check).is_ok() && new.knows_check(&check).is_err());
    }
}
