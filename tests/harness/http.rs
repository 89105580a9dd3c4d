//! The tests' own HTTP client.

use reqwest::{Client, ClientBuilder, redirect::Policy};
use std::time::{Duration, SystemTime};

/// A client that follows no redirect, knows no proxy and never waits long.
#[must_use]
pub fn client() -> Client {
    client_with(|builder| builder)
}

/// The same with settings of the test's own.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests are the outside world: the server's outbound rules bind the server"
)]
#[must_use]
pub fn client_with(change: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Client {
    let builder = Client::builder().redirect(Policy::none()).no_proxy().timeout(Duration::from_secs(30));
    change(builder).build().expect("the settings are good")
}

/// The real time, in seconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "the tests' upstreams live in real time")]
#[must_use]
pub fn now() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
    since_epoch.as_secs().cast_signed()
}
