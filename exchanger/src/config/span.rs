//! Durations as people write them.

use serde::Deserialize;
use std::{fmt, time::Duration};

/// A duration such as `10s`, `15m`, `1h 30m` or `7d`. Not negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct Span(pub Duration);

/// The text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a duration such as `30s`, `10m`, `12h` or `7d`")]
pub struct NotADuration;

impl TryFrom<String> for Span {
    type Error = NotADuration;
    fn try_from(text: String) -> Result<Self, NotADuration> {
        // A day is 24 hours here: nothing in a config is about a calendar.
        let span: jiff::Span = text.parse().map_err(|_| NotADuration)?;
        let span = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| NotADuration)?;
        Duration::try_from(span).map(Self).map_err(|_| NotADuration)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("30s", Some(30)),
            ("1h 30m", Some(5400)),
            ("7d", Some(7 * 86_400)),
            ("-5s", None),
            ("1mo", None),
            ("5", None),
            ("", None),
        ] {
            let span = Span::try_from(text.to_owned()).ok();
            assert_eq!(span, seconds.map(|seconds| Span(Duration::from_secs(seconds))), "{text}");
        }
    }
}
