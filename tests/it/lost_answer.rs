//! An answer that is lost between the real server and the real CLI.

use crate::job::{Job, Upstreams};
use jobpass_exchanger::demo::ledger::Act;
use jobpass_tests::{http::client, ports};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

/// Passes connections on. Of those that ask for a credential it cuts so many, once the server's answer is there.
struct Relay {
    url: String,
    cut: Arc<AtomicUsize>,
}

impl Relay {
    async fn start(server: SocketAddr, lose: usize) -> Self {
        let listener = TcpListener::bind(ports::ANY).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let cut = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, lose, Arc::clone(&counted)));
            }
        });
        Self { url, cut }
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, lose: usize, cut: Arc<AtomicUsize>) {
    // Until it listens, nothing is answered.
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let mut first = [0; 64];
    let read = client.read(&mut first).await.unwrap_or(0);
    server.write_all(&first[..read]).await.expect("the server listens");
    if first.starts_with(b"POST /token ") && cut.fetch_add(1, Relaxed) < lose {
        let (mut asking, _) = client.split();
        let (mut answers, mut asked) = server.split();
        let mut answer = [0; 12];
        tokio::select! {
            answered = answers.read_exact(&mut answer) => drop(answered.expect("an answer")),
            ended = tokio::io::copy(&mut asking, &mut asked) => panic!("the client went away: {ended:?}"),
        }
        assert_eq!(&answer, b"HTTP/1.1 200");
        return; // and nothing of it reaches the client
    }
    // It ends as either side likes.
    let _ = copy_bidirectional(&mut client, &mut server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_asks_again_and_holds_one_credential() {
    for lost in [1, 2] {
        let (upstreams, setup) = Upstreams::start().await;
        let relay = Relay::start(setup.listens(), lost).await;
        let server = setup.reached_at(&relay.url, client()).start().await;
        let job = Job::on_github(&upstreams.ci, &server.url);
        let key = job.takes().await;
        server.keep_quiet(&key);
        assert_eq!(relay.cut.load(Relaxed), lost + 1, "it asked once more than answers were lost");
        assert!(upstreams.key_works(&key).await);

        let made = upstreams.ledger.log().iter().filter(|line| line.act == Act::Created).count();
        assert_eq!((made, upstreams.ledger.keys().len()), (lost + 1, 1), "the keys that nobody has are gone");
        let mut expected = vec!["active"];
        expected.extend(vec!["ended: superseded"; lost]);
        let mut states = server.lease_states();
        states.sort();
        assert_eq!(states, expected);
        assert_eq!(upstreams.ci.requests().token, 1, "with the same token");

        job.jobpass(&["revoke"]).await.expect_success();
        assert!(upstreams.ledger.keys().is_empty());
    }
}
