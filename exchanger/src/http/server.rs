//! Listening: TLS or plain, with deadlines on every read, and a stop that lets requests finish.

use axum::Router;
use axum_server::{Handle, tls_rustls::RustlsConfig};
use hyper_util::rt::TokioTimer;
use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, SystemTime},
};

/// How long a client may take to send its headers.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// How often certificate files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(30);

/// A certificate chain and its key on disk.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM, leaf first.
    pub chain: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// One listener that is being served.
pub struct Served {
    /// Where, with the port that was given.
    pub address: SocketAddr,
    handle: Handle<SocketAddr>,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Served {
    /// Starts to serve.
    ///
    /// # Errors
    /// When the address cannot be bound or the certificate cannot be read.
    pub async fn start(address: SocketAddr, certificate: Option<Certificate>, router: Router) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let handle = Handle::new();
        let service = router.into_make_service();
        let task = match certificate {
            None => {
                let mut server = axum_server::from_tcp(listener)?.handle(handle.clone());
                deadlines(server.http_builder());
                tokio::spawn(server.serve(service))
            }
            Some(certificate) => {
                let config = RustlsConfig::from_pem_file(&certificate.chain, &certificate.key).await?;
                tokio::spawn(reload(config.clone(), certificate));
                let mut server = axum_server::from_tcp_rustls(listener, config)?.handle(handle.clone());
                deadlines(server.http_builder());
                tokio::spawn(server.serve(service))
            }
        };
        Ok(Self { address, handle, task })
    }

    /// Stops listening, and waits for requests in flight, at most `drain`.
    pub async fn stop(self, drain: Duration) {
        self.handle.graceful_shutdown(Some(drain));
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a listener ended with an error"),
            Err(error) => tracing::warn!(%error, "a listener's task was lost"),
        }
    }
}

fn deadlines(builder: &mut hyper_util::server::conn::auto::Builder<hyper_util::rt::TokioExecutor>) {
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(128);
}

/// Reads the certificate again when its files changed; a broken one keeps the last good one.
async fn reload(config: RustlsConfig, certificate: Certificate) {
    let stamp = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let stamps = || (stamp(&certificate.chain), stamp(&certificate.key));
    let mut seen = stamps();
    loop {
        tokio::time::sleep(RELOAD_INTERVAL).await;
        let now = stamps();
        if now == seen {
            continue;
        }
        match config.reload_from_pem_file(&certificate.chain, &certificate.key).await {
            Ok(()) => {
                seen = now;
                tracing::info!(chain = %certificate.chain.display(), "the certificate was read again");
            }
            Err(error) => tracing::error!(%error, "the new certificate cannot be used; the old one stays"),
        }
    }
}
