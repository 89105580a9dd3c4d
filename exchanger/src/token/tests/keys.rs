//! Where keys come from, and how often they are asked for.

use super::*;

#[tokio::test]
async fn a_stranger_costs_nobody_a_request() {
    let world = World::start().await;
    let stranger = World::start().await;
    for _ in 0..10 {
        assert_eq!(world.refusal(&stranger.token()).await, Some(TokenError::UnknownIssuer));
    }
    assert_eq!(world.refusal("e30.e30.e30").await, Some(TokenError::Malformed(JwtError::NoAlgorithm)));
    assert_eq!([world.issuer.requests(), stranger.issuer.requests()], [Requests::default(); 2]);
}

#[tokio::test]
async fn fifty_jobs_wait_for_one_fetch() {
    let world = Arc::new(World::start().await);
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.refusal(&world.token()).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.expect("no panic"), None);
    }
    assert_eq!(world.issuer.requests(), Requests { discovery: 1, jwks: 1, token: 0 });
}

#[tokio::test]
async fn unknown_keys_are_asked_for_twice_a_minute_at_most() {
    let world = World::start().await;
    let flood = async || {
        for n in 0..100 {
            let token = world.mint(Token::for_audience(AUDIENCE).header("kid", format!("made-up-{n}")));
            assert_eq!(world.refusal(&token).await, Some(TokenError::UnknownKey));
        }
        world.jwks_requests()
    };
    assert_eq!(flood().await, 1);
    world.advance(30);
    assert_eq!(flood().await, 1);
    world.advance(1);
    assert_eq!(flood().await, 2);
    // A flood of bad signatures costs no more.
    world.advance(31);
    let token = world.token();
    let (input, _) = token.rsplit_once('.').expect("compact");
    for _ in 0..100 {
        assert_eq!(world.refusal(&format!("{input}.AAAA")).await, Some(TokenError::BadSignature));
    }
    assert_eq!(world.jwks_requests(), 3);
}

#[tokio::test]
async fn the_issuer_changes_its_keys() {
    for rotation in [Rotation::Add, Rotation::Replace, Rotation::Swap] {
        let world = World::start().await;
        let old = world.token();
        assert_eq!(world.refusal(&old).await, None);
        world.issuer.rotate(rotation, Signing::Rs256).expect("a key");
        world.advance(60);
        assert_eq!(world.refusal(&world.token()).await, None, "{rotation:?}: the new key works at once");
        let expected = match rotation {
            Rotation::Add => None,
            Rotation::Replace => Some(TokenError::UnknownKey),
            Rotation::Swap => Some(TokenError::BadSignature),
        };
        assert_eq!(world.refusal(&old).await, expected, "{rotation:?}: the old key");
        assert_eq!(world.jwks_requests(), 2, "{rotation:?}");
    }
}

#[tokio::test]
async fn a_withdrawn_key_works_for_an_hour_at_most() {
    let world = World::start_with(Ci::GitLab, |_| {}).await;
    let token = world.mint(Token::for_audience(AUDIENCE).lasting(7200));
    assert_eq!(world.refusal(&token).await, None);
    world.issuer.rotate(Rotation::Replace, Signing::Rs256).expect("a key");
    world.advance(1800);
    assert_eq!(world.refusal(&token).await, None);
    assert_eq!(world.jwks_requests(), 1);
    world.advance(1801);
    assert_eq!(world.refusal(&token).await, Some(TokenError::UnknownKey));
}

#[tokio::test]
async fn keys_are_renewed_before_they_are_too_old() {
    let world = World::start_with(Ci::GitLab, |_| {}).await;
    let token = world.mint(Token::for_audience(AUDIENCE).lasting(7200));
    assert_eq!(world.refusal(&token).await, None);
    world.advance(1801);
    assert_eq!(world.refusal(&token).await, None);
    // In the background: wait for it, which ends because the issuer answers.
    while world.jwks_requests() < 2 || status(&world).fetched < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(status(&world).fetched_at, Some(Timestamp::from_secs(NOW + 1801)));
}

fn status(world: &World) -> KeyStatus {
    world.verifier.key_status().next().expect("one issuer").1
}

#[tokio::test]
async fn an_issuer_that_is_down() {
    let world = World::start_with(Ci::GitLab, |_| {}).await;
    let unavailable = |seconds| Some(TokenError::KeysUnavailable { retry_after: Duration::from_secs(seconds) });
    let token = world.mint(Token::for_audience(AUDIENCE).lasting(2_000_000));
    world.issuer.fail(Document::Jwks, Fault::Status(503));
    // It is left alone for 5 s, then for 10 s, 20 s, 40 s, and a minute from then on.
    for (attempt, pause) in [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (6, 60)] {
        for _ in 0..20 {
            assert_eq!(world.refusal(&token).await, unavailable(pause));
        }
        assert_eq!(world.jwks_requests(), attempt);
        world.advance(pause - 1);
        assert_eq!(world.refusal(&token).await, unavailable(1));
        assert_eq!(world.jwks_requests(), attempt);
        world.advance(1);
    }
    assert_eq!((status(&world).fetched, status(&world).failed), (0, 6));
    world.issuer.recover();
    assert_eq!(world.refusal(&token).await, None);

    // Once there were keys, they go on working for a day.
    world.issuer.fail(Document::Discovery, Fault::Status(500));
    let token = || world.mint(Token::for_audience(AUDIENCE));
    world.advance(3601);
    assert_eq!(world.refusal(&token()).await, None);
    world.advance(20 * 3600);
    assert_eq!(world.refusal(&token()).await, None);
    world.advance(4 * 3600);
    assert!(matches!(world.refusal(&token()).await, Some(TokenError::KeysUnavailable { .. })));
    world.issuer.recover();
    world.advance(60);
    assert_eq!(world.refusal(&token()).await, None);
}

/// The clock was a day ahead at first.
#[tokio::test]
async fn a_clock_that_is_set_back() {
    let ahead = async |world: &World| {
        world.advance(86_400);
        let refusal = world.refusal(&world.token()).await;
        world.clock.set(Timestamp::from_secs(NOW));
        refusal
    };
    // A failure then does not keep anybody waiting now.
    let world = World::start().await;
    world.issuer.fail(Document::Jwks, Fault::Status(503));
    assert!(matches!(ahead(&world).await, Some(TokenError::KeysUnavailable { .. })));
    world.issuer.recover();
    assert_eq!(world.refusal(&world.token()).await, None);

    // Keys that were had then are not fresh now.
    let world = World::start().await;
    assert_eq!(ahead(&world).await, None);
    let old = world.token();
    world.issuer.rotate(Rotation::Replace, Signing::Rs256).expect("a key");
    assert_eq!(world.refusal(&old).await, Some(TokenError::UnknownKey));
    assert_eq!(world.refusal(&world.token()).await, None);
}

#[tokio::test]
async fn a_key_set_that_is_not_to_be_believed() {
    let elsewhere = World::start().await;
    let body = |keys: Value| Fault::Body(json!({ "keys": keys }).to_string());
    let discovery = |issuer: &str, keys: &str| {
        (Document::Discovery, Fault::Body(json!({ "issuer": issuer, "jwks_uri": keys }).to_string()))
    };
    let other_keys = format!("{}/.well-known/jwks", elsewhere.issuer.url());
    type Failure<'a> = &'a dyn Fn(&str) -> (Document, Fault);
    let cases: [(&str, Failure<'_>); 11] = [
        ("a redirected key set", &|_| (Document::Jwks, Fault::Redirect(other_keys.clone()))),
        ("a redirected discovery", &|_| (Document::Discovery, Fault::Redirect(elsewhere.issuer.url().to_owned()))),
        ("an oversized key set", &|_| (Document::Jwks, Fault::Padded(300_000))),
        ("an oversized discovery", &|_| (Document::Discovery, Fault::Padded(300_000))),
        ("keys on another host", &|url| discovery(url, &other_keys)),
        ("keys on the metadata service", &|url| discovery(url, "http://169.254.169.254/keys")),
        ("keys in a file", &|url| discovery(url, "file:///etc/passwd")),
        ("another issuer's discovery", &|_| discovery(elsewhere.issuer.url(), &other_keys)),
        ("discovery but for a slash", &|url| discovery(&format!("{url}/"), &format!("{url}/.well-known/jwks"))),
        ("no keys", &|_| (Document::Jwks, body(json!([])))),
        ("an HTML page", &|_| (Document::Jwks, Fault::Body("<html>".to_owned()))),
    ];
    for (name, fault) in cases {
        let world = World::start().await;
        let (document, fault) = fault(world.issuer.url());
        world.issuer.fail(document, fault);
        let error = world.refusal(&world.token()).await;
        assert!(matches!(error, Some(TokenError::KeysUnavailable { .. })), "{name}: {error:?}");
    }
    assert_eq!(elsewhere.issuer.requests(), Requests::default());
}

#[tokio::test]
async fn an_issuer_on_a_private_address() {
    // Over https no loopback address is reached unless it is named; over http none without the flag.
    let fake = Fake::start(LOOPBACK, Ci::GitHub, || NOW).await.expect("loopback");
    let token = fake.mint(&Token::for_audience(AUDIENCE)).expect("a token");
    let https = fake.url().replace("http:", "https:");
    let clock = || Arc::new(ManualClock::at(Timestamp::from_secs(NOW)));
    let keys = KeySource::Uri(Url::parse(&format!("{https}/.well-known/jwks")).expect("a URL"));
    let trusted = TrustedIssuer { keys, ..trust(Ci::GitHub, fake.url()) };
    let verifier = Verifier::new(AUDIENCE.to_owned(), vec![trusted], clock()).expect("settings");
    assert!(matches!(verifier.verify(&token).await, Err(TokenError::KeysUnavailable { .. })));
    assert_eq!(fake.requests(), Requests::default());
    let trusted = TrustedIssuer { insecure_http: false, ..trust(Ci::GitHub, fake.url()) };
    let error = Verifier::new(AUDIENCE.to_owned(), vec![trusted], clock()).expect_err("http");
    assert!(matches!(error, VerifierError::Issuer { why: IssuerError::Url(_), .. }), "{error}");
}

#[tokio::test]
async fn keys_in_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("jwks.json");
    let world = World::start_with(Ci::GitHub, |trusted| trusted.keys = KeySource::File(path.clone())).await;
    let write = || std::fs::write(&path, world.issuer.jwks().to_string()).expect("writable");
    assert!(matches!(world.refusal(&world.token()).await, Some(TokenError::KeysUnavailable { .. })));
    write();
    world.advance(5);
    let old = world.token();
    assert_eq!(world.refusal(&old).await, None);
    world.issuer.rotate(Rotation::Replace, Signing::Rs256).expect("a key");
    write();
    world.advance(3);
    assert_eq!(world.refusal(&world.token()).await, None, "a new key is found when a token needs it");
    assert_eq!(world.refusal(&old).await, Some(TokenError::UnknownKey));
    assert_eq!(world.issuer.requests(), Requests::default());
}

#[tokio::test]
async fn a_distrusted_key() {
    let world = World::start().await;
    let kid = world.issuer.jwks()["keys"][0]["kid"].as_str().expect("a kid").to_owned();
    let mut distrusting = trust(Ci::GitHub, world.issuer.url());
    distrusting.distrusted_keys.push(kid.clone());
    let verifier =
        Verifier::new(AUDIENCE.to_owned(), vec![distrusting], Arc::new(world.clock.clone())).expect("settings");
    assert_eq!(verifier.verify(&world.token()).await.err(), Some(TokenError::DistrustedKey));
    let github = "github".parse().expect("a name");
    let trust = verifier.issuer(&github).expect("configured");
    assert!(!trust.vouches(world.issuer.url(), &kid));
    assert!(trust.vouches(world.issuer.url(), "another key"));
    assert!(!trust.vouches("https://elsewhere.example", "another key"));
}
