//! Connections that are held for nothing, and more of them than there are places.

use jobpass_exchanger::{
    http::{
        certificate::Certificate,
        server::{Bounds, Served},
    },
    telemetry::Metrics,
};
use jobpass_tests::{
    https, ports,
    world::{Setting, World},
};
use std::{num::NonZeroU32, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// Longer than any deadline here, and only waited for where one does not hold.
const NEVER: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /.well-known/jwks.json HTTP/1.1\r\nhost: jobpass\r\n\r\n";

async fn start(limits: &str) -> World {
    World::of(Setting { config: format!("limits: {{ {limits} }}\n"), ..Setting::default() }).await
}

async fn connect(world: &World) -> TcpStream {
    TcpStream::connect(world.url.trim_start_matches("http://")).await.expect("the server listens")
}

/// Waits until the server ends the connection.
async fn ended(what: &str, stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = timeout(NEVER, stream.read_to_end(&mut rest)).await.unwrap_or_else(|_| panic!("{what}: it is kept open"));
}

/// Asks on an open connection and reads the whole answer.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(REQUEST).await.expect("the connection is open");
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            if body.len() == length.parse::<usize>().expect("a number") {
                return text;
            }
        }
        let read = timeout(NEVER, stream.read_buf(&mut answer)).await.expect("an answer").expect("an answer");
        assert_ne!(read, 0, "the connection ended: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_for_nothing_ends() {
    let world = start("first_request: 300ms, idle: 1h").await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (what, bytes) in [
        ("nothing", &b""[..]),
        ("a part of a head", b"POST /token HTTP/1.1\r\nhost: job"),
        ("a part of HTTP/2's preface", &preface[..10]),
        // And an empty SETTINGS frame.
        ("HTTP/2 without a request", &[&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat()),
    ] {
        let mut stream = connect(&world).await;
        stream.write_all(bytes).await.expect("the connection is open");
        ended(what, &mut stream).await;
    }
    // One that sends a byte at a time is not a client that is slow: it never gets anywhere.
    let (mut reading, mut writing) = connect(&world).await.into_split();
    let drip = tokio::spawn(async move {
        while writing.write_all(b"A").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let mut rest = Vec::new();
    let _ = timeout(NEVER, reading.read_to_end(&mut rest)).await.expect("byte by byte: it is kept open");
    drop(reading);
    timeout(NEVER, drip).await.expect("the connection is gone").expect("no panic");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_kept_between_requests_and_not_for_ever() {
    let world = start("first_request: 300ms, idle: 1500ms").await;
    let mut stream = connect(&world).await;
    for _ in 0..2 {
        assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
        let quiet = timeout(Duration::from_millis(600), stream.readable()).await;
        assert!(quiet.is_err(), "it is kept longer than one that never asked");
    }
    ended("idle", &mut stream).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_lets_the_next_one_in_when_one_leaves() {
    let world = start("connections: 2, first_request: 1h, idle: 1h").await;
    let metric = |name: &str| {
        let text = world.app().metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{{listener=\"public\"}} ")));
        line.map(|value| value.parse::<u64>().expect("a number"))
    };
    let (mut first, mut second) = (connect(&world).await, connect(&world).await);
    for stream in [&mut first, &mut second] {
        ask(stream).await;
    }
    world.until("all places are taken", async || metric("jobpass_connections_full_total") == Some(1)).await;
    assert_eq!(metric("jobpass_connections"), Some(2));
    let mut third = connect(&world).await;
    third.write_all(REQUEST).await.expect("the system takes it");
    let waits = timeout(Duration::from_millis(300), third.readable()).await;
    assert!(waits.is_err(), "there is no place for a third one");
    // Those that are in are served as ever.
    for stream in [&mut first, &mut second] {
        ask(stream).await;
    }
    drop(first);
    let mut byte = [0];
    timeout(NEVER, third.read_exact(&mut byte)).await.expect("its turn came").expect("an answer");
    // A stop does not wait for connections that are quiet.
    drop((second, third));
    let (mut quiet, start) = (connect(&world).await, Instant::now());
    ask(&mut quiet).await;
    world.close().await;
    assert!(start.elapsed() < NEVER, "{:?}", start.elapsed());
    ended("the server's end", &mut quiet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_handshake_that_does_not_go_on_ends() {
    let files = https::Certificate::make().await;
    let directory = files.authority().parent().expect("a directory").to_owned();
    let certificate = Certificate { chain: directory.join("server.pem"), key: directory.join("server.key") };
    let bounds = Bounds {
        connections: NonZeroU32::MIN,
        first_request: Duration::from_millis(300),
        idle: Duration::from_secs(3600),
    };
    let router = axum::Router::new().route("/", axum::routing::get(async || "here"));
    let counts = Metrics::new(jobpass_exchanger::backends::Backends::default()).listener("public");
    let served = Served::start(ports::ANY, Some(certificate), router, bounds, counts).await.expect("it listens");
    let authority = std::fs::read(files.authority()).expect("readable");
    let authority = reqwest::Certificate::from_pem(&authority).expect("a certificate");
    // The only place is free again after each of these.
    for hello in [&b""[..], &[0x16, 3, 1, 2, 0, 1]] {
        let mut stream = TcpStream::connect(served.address).await.expect("the server listens");
        stream.write_all(hello).await.expect("the connection is open");
        ended("TLS", &mut stream).await;
    }
    #[expect(clippy::disallowed_methods, reason = "a client that trusts the test's own authority")]
    let client = reqwest::Client::builder().tls_certs_only([authority]).build().expect("a client");
    let answer = client.get(format!("https://{}/", served.address)).send().await.expect("an answer");
    assert_eq!(answer.text().await.expect("a text"), "here");
    served.stop(Duration::from_secs(5)).await;
}
