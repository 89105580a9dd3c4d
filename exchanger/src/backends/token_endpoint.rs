//! The token endpoint of another authorization server (RFC 6749 §3.2), as backends ask it.
//!
//! Such a server alone says how long its tokens live. So the backend's config says how long that is at
//! most, and a grant's `ttl` has to be as long: what jobpass tells of a token's end is then true.

use super::{
    MintError, Order,
    spec::{self, SpecReader},
    upstream::Upstream,
};
use crate::clock::{Clock, Timestamp};
use http::HeaderValue;
use jobpass_policy::GrantContext;
use jobpass_protocol::Secret;
use serde::{Deserialize, Deserializer};
use std::{sync::Arc, time::Duration};
use url::Url;

/// How long an endpoint may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// One endpoint.
pub(super) struct TokenEndpoint {
    pub(super) url: Url,
    pub(super) upstream: Upstream,
    /// No token of it lives longer.
    pub(super) longest: Duration,
    pub(super) clock: Arc<dyn Clock>,
}

/// RFC 6749 §5.1.
#[derive(Deserialize)]
struct Answer {
    #[serde(deserialize_with = "spec::secret")]
    access_token: Secret,
    token_type: String,
    #[serde(default, deserialize_with = "seconds")]
    expires_in: Option<u64>,
}

/// A number of seconds; some servers write it as a text.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }
    Ok(match Option::deserialize(deserializer)? {
        Some(Written::Number(seconds)) => Some(seconds),
        Some(Written::Text(text)) => Some(text.parse().map_err(serde::de::Error::custom)?),
        None => None,
    })
}

impl TokenEndpoint {
    /// Refuses a grant whose `ttl` is shorter than its token's life.
    pub(super) fn check_ttl(&self, reader: &mut SpecReader<'_>, grant: &GrantContext<'_>) {
        let longest = self.longest.as_secs();
        if u64::from(grant.ttl()) < longest {
            let message = format!(
                "a token of this server lives up to {longest} seconds, and this grant's `ttl` is {}",
                grant.ttl()
            );
            reader.refuse(
                &[],
                message,
                "raise `ttl`, or have the server give shorter tokens and lower `token_lifetime`",
            );
        }
    }

    /// The same for what a job asks for.
    ///
    /// # Errors
    /// When a token would live longer than that.
    pub(super) fn check_order(&self, order: &Order) -> Result<(), MintError> {
        if order.expires_at.since(order.at) < self.longest {
            let longest = self.longest.as_secs();
            return Err(spec::unfit("ttl", &format!("a token lives up to {longest} seconds, whatever is asked for")));
        }
        Ok(())
    }

    /// When a token that nobody heard of is gone at the latest.
    pub(super) fn worst_expiry(&self, order: &Order) -> Timestamp {
        order.expires_at.max(order.at + self.longest + DEADLINE)
    }

    /// Asks for a token; returns it with the end of its life.
    ///
    /// # Errors
    /// When the server refuses or does not answer, or gives a token that would outlive its lease.
    pub(super) async fn ask(
        &self,
        authorization: Option<HeaderValue>,
        form: &[(&str, &str)],
    ) -> Result<(Secret, Timestamp), MintError> {
        let answer: Answer = self.upstream.post_form(&self.url, authorization, form).await?;
        let unfit = |what: &str| MintError::Unclear(format!("the server gave a token {what}"));
        if !answer.token_type.eq_ignore_ascii_case("bearer") {
            return Err(unfit("that is no bearer token"));
        }
        let life = answer.expires_in.map_or(self.longest, Duration::from_secs);
        if life > self.longest {
            return Err(unfit(&format!("for {} seconds: raise the backend's `token_lifetime`", life.as_secs())));
        }
        // It was made before now, so it ends before then.
        Ok((answer.access_token, self.clock.now() + life))
    }
}
