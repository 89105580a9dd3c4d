//! One type for everything that must never be printed.

use std::fmt;
use zeroize::Zeroizing;

/// A secret text: redacted in `Debug`, without `Display` or `Serialize`, zeroised when dropped.
///
/// The only way to the text is [`Secret::expose`], so that a search for that word finds every place
/// where a secret can get out.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of a secret text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself. Never hand it to a log, an error or a `Debug` value.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the text is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_text() {
        assert_eq!(format!("{:?}", Secret::from("hunter2")), "[secret]");
        assert_eq!(format!("{:?}", Some(Secret::from("hunter2"))), "Some([secret])");
    }
}
