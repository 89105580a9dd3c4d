//! The keys and what is sealed: checked when the server starts, sealed anew when the key changed.

use crate::{
    sealing::{KeyId, Sealed, Sealing, SealingError},
    store::{Store, StoreError},
};

/// Leases that are looked at between two transactions.
const STEP: usize = 100;

/// Why what is sealed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
    /// The keys.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes certain that the configured keys open everything that the store keeps sealed.
///
/// # Errors
/// When a key is missing or another one; the text says which, and the cure.
pub async fn check(sealing: &Sealing, store: &dyn Store) -> Result<(), ResealError> {
    let check = store.seal_check().await?;
    if sealing.configured() {
        sealing.load()?;
        match check {
            Some(check) => sealing.knows_check(&check)?,
            None => store.set_seal_check(sealing.check_value()?).await?,
        }
    }
    let mut after = None;
    loop {
        let leases = store.sealed(after, STEP).await?;
        let Some(last) = leases.last() else { return Ok(()) };
        after = Some(last.id());
        for sealed in leases.iter().filter_map(|lease| lease.sealed()) {
            sealing.knows(sealed)?;
        }
    }
}

/// Seals anew, in small steps, whatever is not under the first key. Returns the key and how many it were.
///
/// # Errors
/// When something does not open, or the store fails; what was sealed anew before stays so.
pub async fn reseal(sealing: &Sealing, store: &dyn Store) -> Result<(KeyId, usize), ResealError> {
    let key = sealing.active()?;
    let (mut after, mut count) = (None, 0);
    loop {
        let leases = store.sealed(after, STEP).await?;
        let Some(last) = leases.last() else { break };
        after = Some(last.id());
        let mut changes = Vec::new();
        for lease in &leases {
            if let (Some(old), Some(new)) = (lease.sealed(), sealing.anew(lease)?) {
                changes.push((lease.id(), old.clone(), new));
            }
        }
        if !changes.is_empty() {
            count += store.reseal(changes).await?;
        }
    }
    // Last: until then the old key is known to be needed.
    if store.seal_check().await?.as_ref().and_then(Sealed::key) != Some(key) {
        store.set_seal_check(sealing.check_value()?).await?;
    }
    Ok((key, count))
}
