//! Durations as people write them.

use serde::Deserialize;
use std::{fmt, time::Duration};

/// A duration such as `10s`, `15m` or `1h 30m`. Not negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct Span(pub Duration);

/// The text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a duration such as `30s`, `10m` or `12h`")]
pub struct NotADuration;

impl TryFrom<String> for Span {
    type Error = NotADuration;
    fn try_from(text: String) -> Result<Self, NotADuration> {
        let span: jiff::SignedDuration = text.parse().map_err(|_| NotADuration)?;
        Duration::try_from(span).map(Self).map_err(|_| NotADuration)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
