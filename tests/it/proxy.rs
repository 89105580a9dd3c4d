//! A job that reaches its server through a proxy only.

use crate::{
    authority::Authority,
    job::{Job, Upstreams},
    tls::serves_tls,
};
use jobpass_tests::ports;
use std::sync::{Arc, Mutex};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A proxy that tunnels (RFC 9110 §9.3.6), and knows every name as this machine. Dropping it closes its port.
struct Proxy {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind(ports::ANY).await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(tunnel(client, Arc::clone(&seen)));
            }
        });
        Self { address, heads, task }
    }

    /// The heads of the requests since the last look.
    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.heads.lock().expect("not poisoned"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tunnel(client: TcpStream, heads: Arc<Mutex<Vec<String>>>) {
    let (mut client, mut head) = (BufReader::new(client), String::new());
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let port = head
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split_once(" HTTP/1.1\r\n")?.0.rsplit_once(':')?.1.parse().ok());
    heads.lock().expect("not poisoned").push(head);
    let Some(port) = port else { return };
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.expect("the server listens");
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.expect("the client waits");
    // It ends as either side likes.
    let _ = copy_bidirectional(&mut client, &mut server).await;
}

/// A name that no resolver knows, and an address of this machine that is not written as loopback.
const ELSEWHERE: [&str; 2] = ["jobpass.test", "0.0.0.0"];

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_through_the_proxy_unless_told_otherwise() {
    let proxy = Proxy::start().await;
    for host in ELSEWHERE {
        let (upstreams, setup) = Upstreams::start().await;
        let (directory, authority) = (tempfile::tempdir().expect("a directory"), Authority::new("own"));
        let server = serves_tls(setup, host, &authority, directory.path()).start().await;
        let port = server.url.rsplit(':').next().expect("a port");
        let job = |variable, no_proxy: &str| {
            Job::on_github(&upstreams.ci, &server.url)
                .with_file("JOBPASS_CA_FILE", &authority.pem())
                .with(variable, &format!("http://runner:s3cret@{}", proxy.address))
                .with("NO_PROXY", no_proxy)
        };
        for (variable, no_proxy) in [("HTTPS_PROXY", ""), ("https_proxy", "other.example"), ("ALL_PROXY", "localhost")]
        {
            upstreams.serve(&job(variable, no_proxy), &server).await;
            let heads = proxy.taken();
            // The token comes from loopback, which is never asked through a proxy.
            assert!(heads.len() == 2, "{variable}: an exchange and a revocation: {heads:?}");
            for head in heads {
                assert!(head.starts_with(&format!("CONNECT {host}:{port} HTTP/1.1\r\n")), "{variable}: {head}");
                let authorization = head.lines().find(|line| line.to_lowercase().starts_with("proxy-authorization:"));
                assert!(authorization.is_some_and(|line| line.ends_with("Basic cnVubmVyOnMzY3JldA==")), "{head}");
            }
        }
        for no_proxy in [host, "other.example, jobpass.test,0.0.0.0", "*"] {
            let job = job("HTTPS_PROXY", no_proxy);
            if host == "0.0.0.0" {
                upstreams.serve(&job, &server).await;
            } else {
                let refused = job.with("JOBPASS_TIMEOUT", "1").asks().await;
                assert!(!refused.status.success() && refused.log.contains("gave no answer"), "{}", refused.log);
            }
            assert_eq!(proxy.taken(), [""; 0], "{no_proxy}: it went through the proxy");
        }
    }
}
