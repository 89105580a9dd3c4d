//! The tests' own HTTP client.

use reqwest::{Client, redirect::Policy};
use std::time::{Duration, SystemTime};

/// A client that follows no redirect, knows no proxy and never waits long.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests are the outside world: the server's outbound rules bind the server"
)]
#[must_use]
pub fn client() -> Client {
    let client = Client::builder().redirect(Policy::none()).no_proxy().timeout(Duration::from_secs(30)).build();
    client.expect("a client without TLS settings of its own can be built")
}

/// The real time, in seconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "the tests' upstreams live in real time")]
#[must_use]
pub fn now() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
    since_epoch.as_secs().cast_signed()
}
