//! Spare loopback ports.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Mutex,
};

/// Any free loopback port, for upstreams that bind it themselves.
pub const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A loopback port that is free now and that this process gives out once only.
#[must_use]
pub fn free() -> u16 {
    loop {
        let listener = TcpListener::bind(ANY).expect("loopback has free ports");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        if GIVEN.lock().expect("no test dies in here").insert(port) {
            return port;
        }
    }
}
