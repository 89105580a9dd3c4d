//! Listening: TLS or plain, bounded in connections and in how long each may be held for nothing, and a stop
//! that lets requests finish.
//!
//! A listener takes no more connections than it has places for: those beyond wait in the system's queue, and
//! nothing that is open is harmed. A connection keeps its place by asking: one that sends no request, or the
//! first bytes of one without the rest, ends after a while.

use super::certificate::Certificate;
use crate::telemetry::Listener;
use arc_swap::ArcSwap;
use axum::{Router, extract::Request, response::Response};
use futures_util::future::BoxFuture;
use hyper::{body::Incoming, service::Service};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;

/// How often certificate files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(30);
/// How long a connection that is told to end has for that.
const CLOSING: Duration = Duration::from_secs(1);
/// Between two tries to accept when the system cannot.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often a full listener is told of.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
/// What is read of a request before it is taken in; its body comes in pieces.
const MAX_READ: usize = 64 * 1024;

/// What the connections of one listener may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many are open at once.
    pub connections: NonZeroU32,
    /// How long one may take to its first request: TLS handshake and headers.
    pub first_request: Duration,
    /// How long one is kept after its last answer, until the headers of the next request are there.
    pub idle: Duration,
}

/// One listener that is being served.
pub struct Served {
    /// Where, with the port that was given.
    pub address: SocketAddr,
    phase: watch::Sender<Phase>,
    house: Arc<House>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Nobody comes in, requests finish.
    Draining,
    /// Nothing is waited for.
    Over,
}

/// What all connections of a listener share.
struct House {
    router: Router,
    certificate: Option<ArcSwap<ServerConfig>>,
    builder: Builder<TokioExecutor>,
    bounds: Bounds,
    places: Arc<Semaphore>,
    counts: Listener,
    phase: watch::Receiver<Phase>,
}

impl Served {
    /// Starts to serve.
    ///
    /// # Errors
    /// When the address cannot be bound or the certificate cannot be read.
    pub async fn start(
        address: SocketAddr,
        certificate: Option<Certificate>,
        router: Router,
        bounds: Bounds,
        counts: Listener,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (phase, watched) = watch::channel(Phase::Serving);
        let tls = certificate.as_ref().map(Certificate::open).transpose().map_err(io::Error::other)?;
        let mut builder = Builder::new(TokioExecutor::new());
        // The time until a request is there is counted here, for every version and before it is known.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_READ);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .max_concurrent_streams(128);
        let house = Arc::new(House {
            router,
            certificate: tls.map(ArcSwap::new),
            builder,
            bounds,
            places: Arc::new(Semaphore::new(bounds.places())),
            counts,
            phase: watched,
        });
        if let Some(certificate) = certificate {
            tokio::spawn(reload(Arc::clone(&house), certificate));
        }
        let task = tokio::spawn(Arc::clone(&house).open(listener));
        Ok(Self { address, phase, house, task })
    }

    /// Stops listening, and waits for requests in flight, at most `drain`.
    pub async fn stop(self, drain: Duration) {
        self.phase.send_replace(Phase::Draining);
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "a listener's task was lost");
        }
        let empty = self.house.places.acquire_many(self.house.bounds.connections.get());
        if timeout(drain, empty).await.is_err() {
            tracing::warn!("requests in flight are cut off: they took longer than `limits.drain`");
        }
        self.phase.send_replace(Phase::Over);
    }
}

impl Bounds {
    fn places(&self) -> usize {
        usize::try_from(self.connections.get()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
    }
}

impl House {
    /// Takes connections in, each in its place.
    async fn open(self: Arc<Self>, listener: TcpListener) {
        let mut phase = self.phase.clone();
        let mut told: Option<Instant> = None;
        loop {
            let (place, accepted) = tokio::select! {
                taken = async { (self.place(&mut told).await, listener.accept().await) } => taken,
                () = reached(&mut phase, Phase::Draining) => return,
            };
            match (place, accepted) {
                (Some(place), Ok((stream, _))) => drop(tokio::spawn(Arc::clone(&self).serve(stream, place))),
                (_, Err(error)) => {
                    tracing::warn!(%error, "a connection cannot be taken in");
                    sleep(ACCEPT_PAUSE).await;
                }
                // The semaphore is never closed.
                (None, _) => return,
            }
        }
    }

    async fn place(&self, told: &mut Option<Instant>) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        self.counts.full.inc();
        if told.is_none_or(|at| at.elapsed() >= TELL_INTERVAL) {
            *told = Some(Instant::now());
            tracing::warn!(
                connections = self.bounds.connections,
                "all connections of a listener are taken, and others wait until one ends: if these are clients of \
                 yours, raise `limits.connections`"
            );
        }
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, place: OwnedSemaphorePermit) {
        self.counts.open.inc();
        // Without it answers still go out, only later.
        let _ = stream.set_nodelay(true);
        let calls = Arc::new(Mutex::new(Calls { running: 0, quiet_until: Instant::now() + self.bounds.first_request }));
        match &self.certificate {
            None => self.converse(stream, calls).await,
            Some(tls) => {
                let by = lock(&calls).quiet_until;
                match timeout_at(by, TlsAcceptor::from(tls.load_full()).accept(stream)).await {
                    Ok(Ok(stream)) => self.converse(stream, calls).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            }
        }
        self.counts.open.dec();
        drop(place);
    }

    /// Serves one connection until it ends, or has been quiet for too long.
    async fn converse(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, calls: Arc<Mutex<Calls>>) {
        let idle = self.bounds.idle;
        let service =
            Answering { router: TowerToHyperService::new(self.router.clone()), calls: Arc::clone(&calls), idle };
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        let mut phase = self.phase.clone();
        let mut closing = false;
        loop {
            let grace = if closing { CLOSING } else { Duration::ZERO };
            let quiet_until = || lock(&calls).quiet_until() + grace;
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection ended with an error");
                    }
                    return;
                }
                () = sleep_until(quiet_until()) => {
                    if quiet_until() > Instant::now() {
                        continue; // it asked for something meanwhile
                    }
                    if closing {
                        return;
                    }
                }
                () = reached(&mut phase, if closing { Phase::Over } else { Phase::Draining }) => {
                    if closing {
                        return;
                    }
                }
            }
            connection.as_mut().graceful_shutdown();
            closing = true;
        }
    }
}

/// What one connection is at.
struct Calls {
    running: usize,
    /// When its place is taken from it unless it asks for something.
    quiet_until: Instant,
}

impl Calls {
    /// A connection whose request is being worked on is looked at again after a while.
    fn quiet_until(&self) -> Instant {
        if self.running == 0 { self.quiet_until } else { Instant::now() + Duration::from_secs(1) }
    }
}

/// The router, and a note of what it is at.
struct Answering {
    router: TowerToHyperService<Router>,
    calls: Arc<Mutex<Calls>>,
    idle: Duration,
}

impl Service<Request<Incoming>> for Answering {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let running = Running::start(Arc::clone(&self.calls), self.idle);
        let answer = self.router.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(running);
            answer
        })
    }
}

/// One request that is being worked on, for as long as it lives.
struct Running(Arc<Mutex<Calls>>, Duration);

impl Running {
    fn start(calls: Arc<Mutex<Calls>>, idle: Duration) -> Self {
        lock(&calls).running += 1;
        Self(calls, idle)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut calls = lock(&self.0);
        calls.running -= 1;
        calls.quiet_until = Instant::now() + self.1;
    }
}

/// Waits for a phase, or for the server's end.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    // Nobody is left to tell: it is over.
    let _ = phase.wait_for(|phase| *phase == wanted || *phase == Phase::Over).await;
}

/// Reads the certificate again when its files changed; a broken one keeps the last good one.
async fn reload(house: Arc<House>, certificate: Certificate) {
    let stamp = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let stamps = || (stamp(&certificate.chain), stamp(&certificate.key));
    let (mut seen, mut phase) = (stamps(), house.phase.clone());
    loop {
        tokio::select! {
            () = sleep(RELOAD_INTERVAL) => {}
            () = reached(&mut phase, Phase::Draining) => return,
        }
        let now = stamps();
        if now == seen {
            continue;
        }
        match (certificate.open(), &house.certificate) {
            (Ok(config), Some(served)) => {
                seen = now;
                served.store(config);
                tracing::info!(chain = %certificate.chain.display(), "the certificate was read again");
            }
            (Err(error), _) => tracing::error!(%error, "the new certificate cannot be used; the old one stays"),
            (Ok(_), None) => return,
        }
    }
}

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}
