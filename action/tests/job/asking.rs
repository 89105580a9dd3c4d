//! When `jobpass` asks again, with what, and when it must not.

use crate::{
    Ci, Job,
    fake::{Fake, Reply, Seen},
};
use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
};

const BUSY: Reply =
    Reply::Status(503, "retry-after: 0\r\n", r#"{"error":"temporarily_unavailable","error_description":"x"}"#);
const DENIED: Reply = Reply::Status(400, "", r#"{"error":"invalid_target","error_description":"not yours"}"#);

#[test]
fn what_is_asked_again() {
    for (replies, asked, code, told) in [
        (vec![Reply::Cut], 2, 0, ""),
        (vec![Reply::Cut, Reply::Cut], 3, 0, ""),
        (vec![BUSY], 2, 0, ""),
        (vec![Reply::Status(429, "retry-after: 1\r\n", "")], 2, 0, ""),
        (vec![Reply::Status(502, "", r#"{"error":"server_error","error_description":"x"}"#)], 2, 0, ""),
        (vec![Reply::Status(500, "", "<html>")], 2, 0, ""),
        (vec![BUSY, DENIED], 2, 125, "not yours"),
        (vec![DENIED], 1, 125, "grant `db` is refused (invalid_target): not yours"),
        (vec![Reply::Status(429, "retry-after: 3600\r\n", "")], 1, 125, "come back in 3600s"),
        (vec![Reply::Status(200, "", "{}")], 1, 125, "not a jobpass server"),
        (vec![Reply::Status(200, "", "garbage")], 1, 125, "not a jobpass server"),
        (vec![Reply::Status(403, "content-type: text/html\r\n", "<html>")], 1, 125, "403 with text/html"),
        (vec![Reply::Status(302, "location: /elsewhere?x\r\n", "")], 1, 125, "redirects to /elsewhere, and"),
        (vec![Reply::Status(307, "location: /elsewhere\r\n", "")], 1, 125, "set JOBPASS_URL to the server's"),
    ] {
        let job = Job::new(Ci::GitLab);
        job.fake.script(&replies);
        let ended = job.exec(&["db"], "true");
        assert_eq!(ended.code, Some(code), "{replies:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(told), "{replies:?}: {}", ended.stderr);
        let requests: Vec<Seen> = job.fake.seen().into_iter().filter(|s| !matches!(s, Seen::Revoke(_))).collect();
        assert_eq!(requests.len(), asked, "{replies:?}: {requests:?}");
        // While the outcome is unknown: the same token, session and request_id.
        assert!(requests.windows(2).all(|pair| pair[0] == pair[1]), "{requests:?}");
    }
}

#[test]
fn a_fresh_token_only_when_the_old_one_has_expired() {
    for (lives, tokens) in [(vec![300], 1), (vec![6], 2)] {
        let job = Job::new(Ci::GitHub);
        job.fake.token_lives(&lives);
        job.fake.script(&[Reply::Status(503, "retry-after: 2\r\n", "")]);
        let ended = job.exec(&["db"], "true");
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let (mut seen, mut ids, mut sessions) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for request in job.fake.seen() {
            if let Seen::Exchange { token, request_id, session, .. } = request {
                seen.insert(token);
                ids.insert(request_id);
                sessions.insert(session);
            }
        }
        assert_eq!((seen.len(), ids.len(), sessions.len()), (tokens, 1, 1));
    }
}

#[test]
fn the_deadline_ends_the_asking() {
    let job = Job::new(Ci::GitLab);
    job.fake.script(&vec![Reply::Cut; 50]);
    let ended = job.run(&["--timeout", "1", "exec", "--grant", "db", "--", "true"]);
    assert_eq!(ended.code, Some(125));
    assert!(ended.stderr.contains("gave no answer within 1s ("), "{}", ended.stderr);
    let ended = job.run(&["--url", "http://127.0.0.1:1", "--timeout", "1", "exec", "--grant", "db", "--", "true"]);
    assert!(ended.stderr.contains("must be exactly http://127.0.0.1:1"), "{}", ended.stderr);
}

#[test]
fn every_call_of_a_job_is_one_session_and_every_exchange_its_own_request() {
    let job = Job::new(Ci::GitLab);
    job.exec(&["db", "api"], "true");
    job.exec(&["db"], "true");
    let (mut ids, mut sessions) = (BTreeSet::new(), BTreeSet::new());
    for request in job.fake.seen() {
        if let Seen::Exchange { request_id, session, .. } = request {
            ids.insert(request_id);
            sessions.insert(session);
        }
    }
    assert_eq!((ids.len(), sessions.len()), (3, 1));
    // The one token of the job stays bound to the session, so it survives a revocation.
    job.run(&["revoke"]);
    job.exec(&["db"], "true");
    let last = job.fake.seen().into_iter().rev().find_map(|seen| match seen {
        Seen::Exchange { session, .. } => Some(session),
        _ => None,
    });
    assert_eq!(last, sessions.into_iter().next());
}

#[test]
fn setups_that_cannot_work_name_their_cure() {
    for (set, args, told) in [
        (&[("JOBPASS_URL", "")][..], &[][..], "JOBPASS_URL is not set"),
        (&[("JOBPASS_URL", "http://jobpass.example")], &[], "JOBPASS_URL must begin with https://"),
        (&[], &["--url", "https://u:p@jobpass.example"], "--url must not hold a user"),
        (&[("JOBPASS_TIMEOUT", "soon")], &[], "JOBPASS_TIMEOUT must be a number"),
        (&[("JOBPASS_ID_TOKEN", "")], &[], "id_tokens:\n      JOBPASS_ID_TOKEN:\n        aud: http"),
        (&[("JOBPASS_ID_TOKEN", "x")], &[], "does not hold a signed token"),
        (&[("GITLAB_CI", ""), ("JOBPASS_ID_TOKEN", "")], &[], "neither GitHub Actions nor GitLab CI"),
        (&[("GITHUB_ACTIONS", "true")], &[], "id-token: write"),
        (&[("JOBPASS_EXEC", "1")], &[], "give the outer `jobpass exec` every --grant"),
        (
            &[("JOBPASS_CA_FILE", "/nowhere")],
            &["--url", "https://127.0.0.1:1"],
            "JOBPASS_CA_FILE: /nowhere cannot be read",
        ),
    ] {
        let job = Job::new(Ci::GitLab);
        let args = [args, &["exec", "--grant", "db", "--", "true"]].concat();
        let mut command = job.command(&args);
        command.envs(set.iter().copied());
        if told.starts_with("JOBPASS_CA_FILE") {
            command.env("JOBPASS_ID_TOKEN", crate::fake::jwt("https://127.0.0.1:1", 300, 0));
        }
        let ended = crate::Ended::from(command.output().expect("jobpass runs"));
        assert_eq!(ended.code, Some(125), "{told}");
        assert!(ended.stderr.replace("%0A", "\n").contains(told), "{told}: {}", ended.stderr);
        assert_eq!(job.fake.story(), "", "{told}: nothing was sent");
    }
}

#[test]
fn an_expired_token_is_not_sent() {
    let job = Job::new(Ci::GitLab);
    let mut command = job.command(&["exec", "--grant", "db", "--", "true"]);
    command.env("JOBPASS_ID_TOKEN", crate::fake::jwt(&job.fake.url, -60, 0));
    let ended = crate::Ended::from(command.output().expect("jobpass runs"));
    assert!(ended.stderr.contains("the job's token expired 6"), "{}", ended.stderr);
    assert_eq!((ended.code, job.fake.story().as_str()), (Some(125), ""));
}

#[test]
fn the_server_must_be_whom_its_ca_vouches_for() {
    let (fake, stranger) = (Fake::start_tls(), Fake::start_tls());
    let home = tempfile::tempdir().expect("directory");
    let [own, other] = [("own.pem", &fake.ca), ("other.pem", &stranger.ca)].map(|(name, pem)| {
        std::fs::write(home.path().join(name), pem).expect("file");
        home.path().join(name)
    });
    let wrong_name = fake.url.replace("127.0.0.1", "localhost");
    for (url, variables, code) in [
        (&fake.url, vec![], 125),
        (&fake.url, vec![("JOBPASS_CA_FILE", &own)], 0),
        (&fake.url, vec![("SSL_CERT_FILE", &own)], 0),
        (&fake.url, vec![("JOBPASS_CA_FILE", &own), ("SSL_CERT_FILE", &other)], 0),
        (&fake.url, vec![("JOBPASS_CA_FILE", &other), ("SSL_CERT_FILE", &own)], 125),
        (&wrong_name, vec![("JOBPASS_CA_FILE", &own)], 125),
    ] {
        let job = Job::new(Ci::GitLab);
        let mut command = job.command(&["--url", url, "exec", "--grant", "db", "--", "true"]);
        command.env("JOBPASS_ID_TOKEN", crate::fake::jwt(url, 300, 0)).envs(variables.iter().copied());
        let ended = crate::Ended::from(command.output().expect("jobpass runs"));
        assert_eq!(ended.code, Some(code), "{url} {variables:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.contains("is not trusted"), code != 0, "{}", ended.stderr);
    }
    assert_eq!((fake.story().as_str(), stranger.story().as_str()), ("db revoke db revoke db revoke", ""));
}

#[test]
fn a_proxy_is_used_and_learns_nothing_but_the_host() {
    let proxy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", proxy.local_addr().expect("address"));
    let seen = std::thread::spawn(move || {
        let (mut stream, _) = proxy.accept().expect("a connection");
        let mut line = String::new();
        BufReader::new(stream.try_clone().expect("clone")).read_line(&mut line).expect("a line");
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").expect("answer");
        line
    });
    let job = Job::new(Ci::GitLab);
    let mut command =
        job.command(&["--url", "https://jobpass.example", "--timeout", "1", "exec", "--grant", "db", "--", "true"]);
    command.env("HTTPS_PROXY", address).env("JOBPASS_ID_TOKEN", crate::fake::jwt("https://jobpass.example", 300, 0));
    let ended = crate::Ended::from(command.output().expect("jobpass runs"));
    assert_eq!(ended.code, Some(125), "{}", ended.stderr);
    assert_eq!(seen.join().expect("proxy"), "CONNECT jobpass.example:443 HTTP/1.1\r\n");
}
