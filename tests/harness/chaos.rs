//! A server on loopback that misbehaves as the test says, whoever asks it: over HTTP, in a protocol whose client
//! speaks first, or in one whose server does.

use crate::ports;
use serde_json::json;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What it does to whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Reads, keeps the connection, and never answers.
    Silent,
    /// Answers bytes of no protocol, and keeps the connection.
    Garbage,
    /// Reads the whole request, and closes the connection.
    Cut,
    /// Answers with this status, its `Retry-After` (of [`RETRY_AFTER`]), and all of the request as JSON.
    Status(u16),
    /// Behaves: it holds nothing, and says so to whoever takes something back.
    Empty,
}

/// What [`Fault::Status`] asks for, in seconds.
pub const RETRY_AFTER: u64 = 7;

const GARBAGE: &[u8] = b"\xff\xfe\x00\x07 nothing that anybody speaks \x80\r\n\r\n\x00\xff\xff\xff\xff\x15\r\n";

/// Who says the first word on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http,
    Client,
    Server,
}

/// The running server; ended on drop.
pub struct Chaos {
    /// Where it is asked over HTTP.
    pub url: String,
    /// Where clients speak first.
    pub client_first: u16,
    /// Where it speaks first.
    pub server_first: u16,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    fault: Mutex<Fault>,
    requests: Mutex<Vec<String>>,
}

impl Chaos {
    /// Starts it; it behaves.
    pub async fn start() -> Self {
        let shared = Arc::new(Shared { fault: Mutex::new(Fault::Empty), requests: Mutex::default() });
        let (mut ports, mut tasks) = (Vec::new(), Vec::new());
        for speaks in [Speaks::Http, Speaks::Client, Speaks::Server] {
            let listener = TcpListener::bind(ports::ANY).await.expect("loopback has free ports");
            ports.push(listener.local_addr().expect("a bound socket has an address").port());
            let shared = Arc::clone(&shared);
            tasks.push(tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let shared = Arc::clone(&shared);
                    // An error is a client that went away.
                    tokio::spawn(async move { shared.converse(stream, speaks).await.unwrap_or_default() });
                }
            }));
        }
        let url = format!("http://127.0.0.1:{}", ports[0]);
        Self { url, client_first: ports[1], server_first: ports[2], shared, tasks }
    }

    /// From now on it does this, on open connections too.
    pub fn misbehave(&self, fault: Fault) {
        *lock(&self.shared.fault) = fault;
    }

    /// All that it was asked over HTTP so far.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test dies in here")
}

impl Shared {
    async fn converse(&self, mut stream: TcpStream, speaks: Speaks) -> std::io::Result<()> {
        let mut read = Vec::new();
        loop {
            let request = match speaks {
                Speaks::Server => String::new(),
                _ => match hear(&mut stream, &mut read, speaks).await? {
                    Some(request) => request,
                    None => return Ok(()),
                },
            };
            if speaks == Speaks::Http {
                lock(&self.requests).push(request.clone());
            }
            let fault = *lock(&self.fault);
            match (fault, speaks) {
                (Fault::Cut, _) | (Fault::Empty, Speaks::Server) => return Ok(()),
                (Fault::Garbage, _) => stream.write_all(GARBAGE).await?,
                (Fault::Empty, Speaks::Http) => stream.write_all(absent(&request).as_bytes()).await?,
                (Fault::Empty, Speaks::Client) => stream.write_all(nothing(&request).as_bytes()).await?,
                (Fault::Status(status), Speaks::Http) => stream.write_all(echo(status, &request).as_bytes()).await?,
                (Fault::Silent | Fault::Status(_), _) => {}
            }
            if speaks == Speaks::Server || fault == Fault::Silent {
                // Until the other side has had enough.
                while stream.read_buf(&mut read).await? > 0 {
                    read.clear();
                }
                return Ok(());
            }
        }
    }
}

/// One whole request, or what there is to read of another protocol; `None`: the client is gone.
async fn hear(stream: &mut TcpStream, read: &mut Vec<u8>, speaks: Speaks) -> std::io::Result<Option<String>> {
    loop {
        let text = String::from_utf8_lossy(read).into_owned();
        let whole = match (speaks, text.split_once("\r\n\r\n")) {
            (Speaks::Http, Some((head, body))) => {
                let head = head.to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                body.len() >= length.and_then(|length| length.trim().parse().ok()).unwrap_or(0)
            }
            (Speaks::Http, None) => false,
            _ => !text.is_empty(),
        };
        if whole {
            read.clear();
            return Ok(Some(text));
        }
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    }
}

fn http(status: u16, more: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} So\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\n\r\n{body}")
}

/// The request itself, where upstreams put what people are to read.
fn echo(status: u16, request: &str) -> String {
    let body = json!({ "error": request, "error_description": request, "message": request, "errors": [request] });
    http(status, &format!("retry-after: {RETRY_AFTER}\r\n"), &body.to_string())
}

/// An empty list, and nothing else.
fn absent(request: &str) -> String {
    if request.starts_with("GET ") { http(200, "", "[]") } else { http(404, "", "{}") }
}

/// RESP: no user was there to be deleted, and everything else is fine.
fn nothing(request: &str) -> String {
    let commands = request.split("\r\n*").map(|command| if command.contains("DELUSER") { ":0\r\n" } else { "+OK\r\n" });
    commands.collect()
}
