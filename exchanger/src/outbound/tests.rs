use super::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

const PATIENT: Duration = Duration::from_secs(30);
const HASTY: Duration = Duration::from_millis(200);

#[test]
fn addresses() {
    for (address, public) in [
        ("8.8.8.8", true),
        ("140.82.112.3", true),
        ("100.63.255.255", true),
        ("100.128.0.0", true),
        ("172.15.0.1", true),
        ("172.32.0.1", true),
        ("192.0.1.1", true),
        ("198.17.0.1", true),
        ("223.255.255.255", true),
        ("0.0.0.0", false),
        ("0.1.2.3", false),
        ("10.0.0.1", false),
        ("100.64.0.1", false),
        ("100.100.100.200", false), // Alibaba's metadata
        ("127.0.0.1", false),
        ("127.255.255.254", false),
        ("168.63.129.16", false),
        ("169.254.169.254", false),
        ("172.16.0.1", false),
        ("172.31.255.255", false),
        ("192.0.0.192", false), // Oracle's metadata
        ("192.0.2.1", false),
        ("192.88.99.1", false),
        ("192.168.1.1", false),
        ("198.18.0.1", false),
        ("198.51.100.1", false),
        ("203.0.113.1", false),
        ("224.0.0.1", false),
        ("240.0.0.1", false),
        ("255.255.255.255", false),
        ("2606:50c0:8000::153", true),
        ("2a00:1450:4001:829::200e", true),
        ("::", false),
        ("::1", false),
        ("::8.8.8.8", false), // IPv4-compatible, deprecated
        ("::ffff:8.8.8.8", true),
        ("::ffff:127.0.0.1", false),
        ("::ffff:169.254.169.254", false),
        ("::ffff:0:8.8.8.8", false), // SIIT
        ("64:ff9b::8.8.8.8", true),
        ("64:ff9b::10.0.0.1", false),
        ("64:ff9b::169.254.169.254", false),
        ("64:ff9b:1::8.8.8.8", false), // NAT64 for local use
        ("100::1", false),
        ("2001::1", false),
        ("2001:1ff::1", false),
        ("2001:200::1", true),
        ("2001:db8::1", false),
        ("2002:7f00:1::1", false), // 6to4
        ("2002:808:808::1", false),
        ("3fff:1::1", false),
        ("3fff:1000::1", true),
        ("5f00::1", false),
        ("fc00::1", false),
        ("fd00:ec2::254", false), // AWS's metadata
        ("fe80::1", false),
        ("fec0::1", false),
        ("ff02::1", false),
    ] {
        let address: IpAddr = address.parse().expect("an address");
        assert_eq!(address_allowed(address, &[]), public, "{address}");
        assert!(address_allowed(address, &[IpNet::from(address)]), "{address} is named");
    }
    let named = ["10.1.0.0/16".parse().expect("a network")];
    assert!(address_allowed("::ffff:10.1.2.3".parse().expect("an address"), &named));
    assert!(!address_allowed("10.2.0.1".parse().expect("an address"), &named));
}

#[test]
fn urls() {
    for (url, insecure_http, expected) in [
        ("https://example.com/", false, None),
        ("https://8.8.8.8/", false, None),
        ("http://127.0.0.1:80/", true, None),
        ("http://[::1]/", true, None),
        ("http://localhost/", true, None),
        ("http://127.0.0.1/", false, Some("only https")),
        ("http://example.com/", true, Some("only https")),
        ("http://8.8.8.8/", true, Some("only https")),
        ("http://localhost.example.com/", true, Some("only https")),
        ("ftp://example.com/", true, Some("only https")),
        ("file:///etc/passwd", true, Some("not an absolute URL")),
        ("data:text/plain,x", true, Some("not an absolute URL")),
        ("https://127.0.0.1/", true, Some("not a public address")),
        ("https://0x7f.1/", false, Some("not a public address")),
        ("https://2130706433/", false, Some("not a public address")),
        ("https://[::ffff:10.0.0.1]/", false, Some("not a public address")),
        ("https://169.254.169.254/latest/meta-data/", false, Some("not a public address")),
    ] {
        let filter = Filter { allow: Vec::new(), insecure_http, proxy: None };
        match (filter.check(&Url::parse(url).expect("a URL")), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{url}: {error}"),
            (found, _) => panic!("{url}: {found:?}"),
        }
    }
}

/// A server on loopback that reads a request's head, answers so, and hangs up unless it is not done.
async fn serve(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            if answer.is_empty() || answer.ends_with("...") {
                std::future::pending::<()>().await;
            }
        }
    });
    address
}

fn client(insecure_http: bool, deadline: Duration) -> Outbound {
    Outbound::new(OutboundOptions { insecure_http, deadline, max_body: 100, ..OutboundOptions::default() })
        .expect("a client")
}

#[tokio::test]
async fn answers() {
    let check = async |answer: &'static str, expected: Result<u16, &str>| {
        let address = serve(answer).await;
        let url = Url::parse(&format!("http://localhost:{}/a?secret=hunter2", address.port())).expect("a URL");
        let deadline = if expected == Err("did not answer in time") { HASTY } else { PATIENT };
        match (client(true, deadline).get(&url).await, expected) {
            (Ok(fetched), Ok(status)) => assert_eq!(fetched.status, status, "{answer}"),
            (Err(error), Err(text)) => {
                let shown = format!("{error} {error:?}");
                assert!(shown.contains(text), "{answer}: {shown}");
                assert!(!shown.contains("hunter2") && !error.never_sent(), "{answer}: {shown}");
            }
            (found, _) => panic!("{answer}: {found:?}"),
        }
    };
    check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Ok(200)).await;
    check("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", Ok(500)).await;
    check("HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n", Ok(302)).await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n", Err("more than 100 bytes")).await;
    let chunk = "32\r\n01234567890123456789012345678901234567890123456789\r\n";
    let chunked = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n");
    check(chunked.leak(), Err("more than 100 bytes")).await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nwait...", Err("did not answer in time")).await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nand no more", Err("failed")).await;
    check("SSH-2.0-OpenSSH\r\n", Err("failed")).await;
    check("", Err("did not answer in time")).await;
}

#[tokio::test]
async fn names_that_resolve_to_loopback() {
    let address = serve("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let url = Url::parse(&format!("https://localhost:{}/", address.port())).expect("a URL");
    let error = client(false, PATIENT).get(&url).await.expect_err("loopback");
    assert!(matches!(&error, OutboundError::Address { address, .. } if address.is_loopback()), "{error:?}");
    assert!(error.never_sent());
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("an address");
    let request = Request::post(format!("http://{closed}/")).body(b"x".to_vec()).expect("a request");
    let error = client(true, PATIENT).send(request).await.expect_err("nobody listens");
    assert!(matches!(error, OutboundError::Connect { .. }) && error.never_sent(), "{error:?}");
}

#[test]
fn retry_after() {
    let now = Timestamp::from_secs(784_111_777);
    for (text, seconds) in [
        ("7", Some(7)),
        ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
        ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
        ("-1", None),
        ("soon", None),
    ] {
        let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, text.parse().expect("a value"))]);
        let fetched = Fetched { status: StatusCode::TOO_MANY_REQUESTS, headers, body: Vec::new() };
        assert_eq!(fetched.retry_after(now), seconds.map(Duration::from_secs), "{text}");
    }
}

#[test]
fn ca_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ca.pem");
    for text in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&path, text).expect("writable");
        let options = OutboundOptions { ca_file: Some(path.clone()), ..OutboundOptions::default() };
        assert!(Outbound::new(options).is_err(), "{text}");
    }
}
