//! A plain HTTP/1.1 listener that ends with its owner and can cut a connection instead of answering.

use super::DemoError;
use axum::{Router, body::Body, http::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{io, net::SocketAddr};
use tokio::{net::TcpListener, task::JoinHandle, task::JoinSet};
use tower::ServiceExt as _;

/// Put into a response's extensions: the connection is closed and the response never sent.
#[derive(Clone)]
pub(super) struct Cut;

/// A running listener; dropping it closes the port and every connection.
pub(super) struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens a port. Port 0 takes a free one.
pub(super) async fn bind(address: SocketAddr) -> Result<(TcpListener, String), DemoError> {
    let refused = |source| DemoError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let url = format!("http://{}", listener.local_addr().map_err(refused)?);
    Ok((listener, url))
}

/// Serves `router` until the answer is dropped.
pub(super) fn serve(listener: TcpListener, router: Router) -> Listening {
    Listening(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            // A failed accept is that client's trouble (it went away, or we are out of descriptors).
            let Ok((stream, _)) = listener.accept().await else {
                tokio::task::yield_now().await;
                continue;
            };
            let router = router.clone();
            connections.spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| answer(router.clone(), request));
                // A connection that breaks is what half of the tests are about.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
            while connections.try_join_next().is_some() {}
        }
    }))
}

async fn answer(router: Router, request: Request<Incoming>) -> io::Result<Response> {
    let Ok(response) = router.oneshot(request.map(Body::new)).await;
    if response.extensions().get::<Cut>().is_some() {
        return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
    }
    Ok(response)
}
