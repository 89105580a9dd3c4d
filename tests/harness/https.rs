//! A certificate of its own for a server on loopback, and serving with it.

use crate::{ports, tls::certificates};
use axum::Router;
use axum_server::tls_rustls::RustlsConfig;
use std::{io, net::SocketAddr, path::PathBuf};
use tempfile::TempDir;

/// A certificate for 127.0.0.1, its key, and its own authority, in PEM files.
pub struct Certificate {
    directory: TempDir,
}

impl Certificate {
    /// Makes them.
    pub async fn make() -> Self {
        let directory = tempfile::tempdir().expect("the temporary directory is there");
        certificates(directory.path()).await;
        Self { directory }
    }

    /// The authority's file: clients that trust it trust the server.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// An address, and what serves there.
    pub async fn server(&self) -> (String, impl FnOnce(Router) -> Serving + use<>) {
        // A second one finds it installed; that is fine.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let file = |name: &str| self.directory.path().join(name);
        let config = RustlsConfig::from_pem_file(file("server.pem"), file("server.key")).await;
        let config = config.expect("the certificate and its key are good");
        let address = SocketAddr::from(([127, 0, 0, 1], ports::free()));
        let serve = move |router: Router| -> Serving {
            Box::pin(axum_server::bind_rustls(address, config).serve(router.into_make_service()))
        };
        (format!("https://{address}"), serve)
    }
}

/// A server at work.
pub type Serving = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// The same over plain http.
pub async fn plain() -> (String, impl FnOnce(Router) -> Serving) {
    let listener = tokio::net::TcpListener::bind(ports::ANY).await.expect("loopback has free ports");
    let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
    (url, move |router: Router| -> Serving { Box::pin(async move { axum::serve(listener, router).await }) })
}
