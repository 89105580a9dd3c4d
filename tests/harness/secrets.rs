//! What no log may hold.

use std::sync::{Mutex, PoisonError};

/// The shortest part of a token that is looked for: shorter ones may be there by chance.
const LONG: usize = 16;

/// Texts that must stay unsaid.
#[derive(Default)]
pub struct Secrets(Mutex<Vec<String>>);

impl Secrets {
    /// From now on this text must stay unsaid, and of a token its payload and its signature each by itself.
    pub fn keep(&self, text: &str) {
        let parts: Vec<_> = text.split('.').collect();
        // Header, payload, signature. The header tells nothing.
        let parts = if parts.len() == 3 { &parts[1..] } else { &[] };
        let long = parts.iter().filter(|part| part.len() > LONG).copied();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend([text].into_iter().chain(long).map(str::to_owned));
    }

    /// Fails the test when any of them is in `log`.
    #[track_caller]
    pub fn assert_unsaid(&self, log: &str, what: &str) {
        for secret in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            assert!(!log.contains(secret), "a secret is in {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn tokens_are_found_in_part() {
        let secrets = Secrets::default();
        secrets.keep("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ");
        secrets.keep("ldg_key.with.dots");
        for (log, found) in [
            ("kid eyJhbGciOiJFUzI1NiJ9", false),
            ("with dots", false),
            ("claims eyJzdWIiOiJhbGljZSJ9!", true),
            ("sig=c2lnbmF0dXJlLXNpZ25hdHVyZQ", true),
            ("ldg_key.with.dots", true),
        ] {
            let told = catch_unwind(AssertUnwindSafe(|| secrets.assert_unsaid(log, "the log")));
            assert_eq!(told.is_err(), found, "{log}");
        }
    }
}
