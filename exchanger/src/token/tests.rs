//! Tokens of the demo's issuer, good ones and each kind of bad one, against a real verifier over loopback.

mod keys;

use super::{
    issuer::{KeySource, TrustedIssuer},
    *,
};
use crate::{
    clock::ManualClock,
    demo::{
        Algorithm as Signing, Ci,
        issuer::{Document, Fault, Issuer as Fake, Requests, Rotation, Token},
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_policy::{ClaimsError, Profile};
use jobpass_protocol::jwt::JwtError;
use serde_json::{Value, json};
use std::net::SocketAddr;

const AUDIENCE: &str = "https://jobpass.acme.example";
const NOW: i64 = 1_790_000_000;
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// An issuer, a verifier that trusts it, and the clock that both go by.
struct World {
    issuer: Fake,
    verifier: Verifier,
    clock: ManualClock,
}

impl World {
    async fn start() -> Self {
        Self::start_with(Ci::GitHub, |_| {}).await
    }

    async fn start_with(ci: Ci, adjust: impl FnOnce(&mut TrustedIssuer)) -> Self {
        let clock = ManualClock::at(Timestamp::from_secs(NOW));
        let seconds = clock.clone();
        let issuer = Fake::start(LOOPBACK, ci, move || seconds.now().secs()).await.expect("loopback");
        let mut trusted = trust(ci, issuer.url());
        adjust(&mut trusted);
        let verifier = Verifier::new(AUDIENCE.to_owned(), vec![trusted], Arc::new(clock.clone())).expect("settings");
        Self { issuer, verifier, clock }
    }

    fn token(&self) -> String {
        self.mint(Token::for_audience(AUDIENCE))
    }

    fn mint(&self, token: Token) -> String {
        self.issuer.mint(&token).expect("a token")
    }

    async fn refusal(&self, token: &str) -> Option<TokenError> {
        self.verifier.verify(token).await.err()
    }

    fn jwks_requests(&self) -> u32 {
        self.issuer.requests().jwks
    }

    fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

fn trust(ci: Ci, url: &str) -> TrustedIssuer {
    let name = if ci == Ci::GitHub { "github" } else { "gitlab" };
    TrustedIssuer {
        policy: Issuer {
            name: name.parse().expect("a name"),
            url: url.to_owned(),
            profile: Profile::named(name).expect("a profile"),
            tenants: vec!["1001".to_owned()],
            shared: true,
        },
        algorithms: None,
        keys: KeySource::Discovery,
        distrusted_keys: Vec::new(),
        allow_networks: Vec::new(),
        ca_file: None,
        insecure_http: true,
        proxy: None,
    }
}

#[tokio::test]
async fn a_good_token() {
    for ci in [Ci::GitHub, Ci::GitLab] {
        let world = World::start_with(ci, |_| {}).await;
        let token = world.token();
        let verified = world.verifier.verify(&token).await.expect("it is good");
        assert_eq!(verified.issuer().url, world.issuer.url());
        assert_eq!(verified.claims().tenant().as_deref(), Some("1001"));
        assert_eq!(verified.expires_at(), Timestamp::from_secs(NOW + 300));
        assert_eq!(&**verified.key_id(), world.issuer.jwks()["keys"][0]["kid"].as_str().expect("a kid"));
        let again = world.verifier.verify(&token).await.expect("it still is");
        assert_eq!(again.key(), verified.key());
        assert_ne!(world.verifier.verify(&world.token()).await.expect("another one").key(), verified.key());
        assert!(!format!("{verified:?}").contains("acme"), "claims have no voice");
    }
}

/// Every bad token of the demo's issuer that a change of claims, header or age can make.
#[tokio::test]
async fn bad_tokens() {
    let world = World::start().await;
    let audience = || Arc::from(AUDIENCE);
    let good = || Token::for_audience(AUDIENCE);
    let missing = |claim: &str| TokenError::Claims(ClaimsError::Missing(claim.to_owned()));
    let wrong = |claim: &str, expected| TokenError::Claims(ClaimsError::Type { claim: claim.to_owned(), expected });
    let (text, texts, seconds) = ("a string", "a string or a list of strings", "a whole number of seconds");
    let critical = TokenError::Malformed(JwtError::Critical);
    let own_key = |member| TokenError::Malformed(JwtError::KeyInHeader(member));
    for (name, token, expected) in [
        ("good", good(), None),
        ("aud in a list", Token::for_audience(json!([AUDIENCE])), None),
        ("nearly too old", good().aged(599).lasting(900), None),
        ("expired within the leeway", good().aged(329), None),
        ("a slow issuer", good().aged(-30), None),
        ("typ without case", good().header("typ", "jwt"), None),
        ("typ in its long form", good().header("typ", "application/JWT"), None),
        ("no typ", good().header("typ", Value::Null), None),
        ("x5t says nothing", good().header("x5t", "abc"), None),
        // times
        ("expired", good().aged(330), Some(TokenError::Expired)),
        ("expired long ago", good().claim("exp", 7), Some(TokenError::Expired)),
        ("exp below any clock", good().claim("exp", i64::MIN), Some(TokenError::Expired)),
        ("issued in the future", good().aged(-31).claim("nbf", NOW), Some(TokenError::IssuedInFuture)),
        ("iat above any clock", good().claim("iat", i64::MAX).claim("exp", i64::MAX), Some(TokenError::IssuedInFuture)),
        ("nbf in the future", good().claim("nbf", NOW + 31), Some(TokenError::NotYetValid)),
        ("nbf above any clock", good().claim("nbf", i64::MAX), Some(TokenError::NotYetValid)),
        ("exp in 100 years", good().lasting(100 * 365 * 86400), Some(TokenError::LivesTooLong(21600))),
        ("exp above any clock", good().claim("exp", i64::MAX), Some(TokenError::LivesTooLong(21600))),
        ("too old though not expired", good().aged(601).lasting(3600), Some(TokenError::TooOld(600))),
        ("iat below any clock", good().claim("iat", i64::MIN), Some(TokenError::LivesTooLong(21600))),
        ("no exp", good().claim("exp", Value::Null), Some(missing("exp"))),
        ("no iat", good().claim("iat", Value::Null), Some(missing("iat"))),
        ("exp as text", good().claim("exp", "1790000300"), Some(wrong("exp", seconds))),
        ("exp with a fraction", good().claim("exp", 1_790_000_300.5), Some(wrong("exp", seconds))),
        ("exp beyond 64 bits", good().claim("exp", u64::MAX), Some(wrong("exp", seconds))),
        ("iat as text", good().claim("iat", "1790000000"), Some(wrong("iat", seconds))),
        ("nbf as text", good().claim("nbf", "1790000000"), Some(wrong("nbf", seconds))),
        // audience
        ("no aud", good().claim("aud", Value::Null), Some(missing("aud"))),
        ("another aud", Token::for_audience("https://github.com/acme"), Some(TokenError::Audience(audience()))),
        ("aud but for a slash", Token::for_audience(format!("{AUDIENCE}/")), Some(TokenError::Audience(audience()))),
        ("aud in capitals", Token::for_audience(AUDIENCE.to_uppercase()), Some(TokenError::Audience(audience()))),
        ("several auds", Token::for_audience(json!(["x", AUDIENCE])), Some(TokenError::SeveralAudiences(audience()))),
        (
            "our aud twice",
            Token::for_audience(json!([AUDIENCE, AUDIENCE])),
            Some(TokenError::SeveralAudiences(audience())),
        ),
        ("empty aud", Token::for_audience(json!([])), Some(TokenError::Audience(audience()))),
        ("aud as an object", Token::for_audience(json!({ AUDIENCE: true })), Some(wrong("aud", texts))),
        ("aud of numbers", Token::for_audience(json!([7])), Some(wrong("aud", texts))),
        // issuer
        (
            "another iss",
            good().claim("iss", "https://token.actions.githubusercontent.com"),
            Some(TokenError::UnknownIssuer),
        ),
        (
            "iss but for a slash",
            good().claim("iss", format!("{}/", world.issuer.url())),
            Some(TokenError::UnknownIssuer),
        ),
        ("iss in a list", good().claim("iss", json!([world.issuer.url(), "evil"])), Some(TokenError::NoIssuer)),
        ("no iss", good().claim("iss", Value::Null), Some(TokenError::NoIssuer)),
        ("iss as a number", good().claim("iss", 7), Some(TokenError::NoIssuer)),
        // other claims
        ("no jti", good().claim("jti", Value::Null), Some(missing("jti"))),
        ("empty jti", good().claim("jti", ""), Some(TokenError::NoTokenId)),
        ("jti as a number", good().claim("jti", 7), Some(wrong("jti", text))),
        ("no tenant", good().claim("repository_owner_id", Value::Null), Some(missing("repository_owner_id"))),
        ("no repository", good().claim("repository_id", Value::Null), Some(missing("repository_id"))),
        ("a foreign tenant", good().claim("repository_owner_id", "1002"), Some(TokenError::ForeignTenant)),
        (
            "a tenant that begins like ours",
            good().claim("repository_owner_id", "10011"),
            Some(TokenError::ForeignTenant),
        ),
        // header
        ("alg none", good().header("alg", "none"), Some(TokenError::Algorithm)),
        ("alg None", good().header("alg", "NoNe"), Some(TokenError::Algorithm)),
        ("alg of another family", good().header("alg", "ES256"), Some(TokenError::Algorithm)),
        ("alg of the family", good().header("alg", "RS512"), Some(TokenError::Algorithm)),
        ("alg in small letters", good().header("alg", "rs256"), Some(TokenError::Algorithm)),
        ("HMAC", good().header("alg", "HS256"), Some(TokenError::Algorithm)),
        ("no alg", good().header("alg", Value::Null), Some(TokenError::Malformed(JwtError::NoAlgorithm))),
        ("wrong typ", good().header("typ", "at+jwt"), Some(TokenError::TokenType)),
        ("typ of a logout token", good().header("typ", "logout+jwt"), Some(TokenError::TokenType)),
        ("typ as a number", good().header("typ", 7), Some(TokenError::Malformed(JwtError::Json("header")))),
        ("unknown kid", good().header("kid", "nobody"), Some(TokenError::UnknownKey)),
        ("a kid that would be a path", good().header("kid", "../../dev/null"), Some(TokenError::UnknownKey)),
        ("empty kid", good().header("kid", ""), Some(TokenError::UnknownKey)),
        ("no kid, one key", good().header("kid", Value::Null), None),
        ("kid as a list", good().header("kid", json!([1])), Some(TokenError::Malformed(JwtError::Json("header")))),
        ("crit", good().header("crit", json!(["exp"])), Some(critical)),
        ("jku", good().header("jku", "https://evil.example/keys"), Some(own_key("jku"))),
        ("x5u", good().header("x5u", "https://evil.example/cert"), Some(own_key("x5u"))),
        ("jwk", good().header("jwk", world.issuer.jwks()["keys"][0].clone()), Some(own_key("jwk"))),
        ("b64", good().header("b64", false), Some(TokenError::Malformed(JwtError::Encoding("b64")))),
    ] {
        assert_eq!(world.refusal(&world.mint(token)).await, expected, "{name}");
    }
    // A whole table of bad tokens: the keys were fetched once.
    assert_eq!(world.issuer.requests(), Requests { discovery: 1, jwks: 1, token: 0 });
}

/// Bad tokens that are not made by setting a claim.
#[tokio::test]
async fn bad_texts() {
    let world = World::start().await;
    let token = world.token();
    let parts: Vec<&str> = token.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let b64 = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let plain = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("UTF-8");
    let (header_json, payload_json) = (plain(header), plain(payload));
    let other = world.token();
    let foreign = other.rsplit('.').next().expect("a signature");
    // HMAC with the public key as its secret: what a verifier that lets `alg` choose would accept.
    let hmac = {
        use hmac::Mac as _;
        let modulus = world.issuer.jwks()["keys"][0]["n"].as_str().expect("RSA").to_owned();
        let input = format!("{}.{payload}", b64(&header_json.replace("RS256", "HS256")));
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(modulus.as_bytes()).expect("any key");
        mac.update(input.as_bytes());
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    };
    let signed = |payload: &str| world.issuer.sign(&header_json, payload).expect("a signature");
    let inside = payload_json.strip_suffix('}').expect("an object");
    let deep = format!(r#"{inside},"x":{}{}}}"#, "[".repeat(40), "]".repeat(40));
    let bottomless = format!(r#"{inside},"x":{}"#, r#"{"a":"#.repeat(2000));
    let json = || Some(TokenError::Malformed(JwtError::Json("payload")));
    let claims = || Some(TokenError::Claims(ClaimsError::Json));
    let base64 = |part| Some(TokenError::Malformed(JwtError::Base64(part)));
    for (name, text, expected) in [
        ("empty", String::new(), Some(TokenError::Malformed(JwtError::NotCompact))),
        ("words", "not a token".to_owned(), Some(TokenError::Malformed(JwtError::NotCompact))),
        ("four parts", format!("{token}.x"), Some(TokenError::Malformed(JwtError::NotCompact))),
        ("encrypted", format!("{header}.a.b.c.d"), Some(TokenError::Malformed(JwtError::NotCompact))),
        ("oversized", "a".repeat(100_000), Some(TokenError::Malformed(JwtError::TooLong))),
        ("padded", format!("{header}.{payload}.{signature}=="), base64("signature")),
        ("a line break", format!("{token}\n"), base64("signature")),
        ("standard base64", format!("{header}.{payload}.{}", signature.replace(['-', '_'], "+")), base64("signature")),
        ("no signature", format!("{header}.{payload}."), Some(TokenError::BadSignature)),
        ("another token's signature", format!("{header}.{payload}.{foreign}"), Some(TokenError::BadSignature)),
        ("half a signature", format!("{header}.{payload}.{}", &signature[..128]), Some(TokenError::BadSignature)),
        (
            "a changed claim",
            format!("{header}.{}.{signature}", b64(&payload_json.replace("acme/api", "acme/web"))),
            Some(TokenError::BadSignature),
        ),
        (
            "a changed header",
            format!("{}.{payload}.{signature}", b64(&header_json.replace("JWT", "jwt"))),
            Some(TokenError::BadSignature),
        ),
        ("HMAC with the public key", hmac, Some(TokenError::Algorithm)),
        ("not JSON", signed("hello"), json()),
        ("not an object", signed("[]"), json()),
        ("not UTF-8", format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(b"{\"iss\":\"\xff\"}")), json()),
        ("two payloads", signed(&format!("{payload_json}{payload_json}")), json()),
        ("iss twice", signed(&format!(r#"{inside},"iss":"https://evil.example"}}"#)), json()),
        ("a claim twice", signed(&format!(r#"{inside},"repository_id":"772002"}}"#)), claims()),
        ("a claim twice, escaped", signed(&format!(r#"{inside},"repository\u005fid":"1"}}"#)), claims()),
        ("a nested member twice", signed(&format!(r#"{inside},"x":{{"y":1,"y":2}}}}"#)), claims()),
        ("deep", signed(&deep), claims()),
        ("bottomless", signed(&bottomless), json()),
        (
            "alg twice",
            format!("{}.{payload}.{signature}", b64(r#"{"alg":"RS256","alg":"none"}"#)),
            Some(TokenError::Malformed(JwtError::Json("header"))),
        ),
    ] {
        let error = world.refusal(&text).await;
        assert_eq!(error, expected, "{name}");
        let shown = error.map(|error| format!("{error} {error:?}")).unwrap_or_default();
        for part in parts.iter().chain(&["acme", "evil", "772002"]) {
            assert!(!shown.contains(part), "{name}: {shown}");
        }
    }
}

#[test]
fn issuers_that_are_refused() {
    const GITHUB: &str = "https://token.actions.githubusercontent.com";
    let base = || trust(Ci::GitHub, GITHUB);
    let at = |url: &str| trust(Ci::GitLab, url);
    let check = |name: &str, issuers: Vec<TrustedIssuer>, expected: &str| {
        let clock = Arc::new(ManualClock::at(Timestamp::from_secs(NOW)));
        let found = Verifier::new(AUDIENCE.to_owned(), issuers, clock).err().map(|error| error.to_string());
        match found {
            None => assert_eq!(expected, "", "{name} was accepted"),
            Some(text) => assert!(!expected.is_empty() && text.contains(expected), "{name}: {text}"),
        }
    };
    check("good", vec![base(), at("https://gitlab.acme.example:8443/git")], "");
    for url in [
        "http://gitlab.acme.example",
        "https://GITLAB.acme.example",
        "https://gitlab.acme.example:443",
        "https://user@gitlab.acme.example",
        "https://gitlab.acme.example?x",
        "https://gitlab.acme.example/a/../b",
        "gitlab.acme.example",
        "file:///etc/passwd",
        "http://10.0.0.7",
    ] {
        check(url, vec![at(url)], "is not an issuer's URL");
    }
    check("not GitHub's", vec![trust(Ci::GitHub, "https://gitlab.com")], "is not where an issuer of the profile");
    check("ourselves", vec![at(AUDIENCE)], "this server's own");
    check("ourselves with a slash", vec![at(&format!("{AUDIENCE}/"))], "this server's own");
    check("twice", vec![base(), base()], "two issuers are named `github`");
    let mut other = at("https://gitlab.com/");
    check(
        "a slash apart",
        vec![at("https://gitlab.com/"), {
            other.policy.url.pop();
            other.policy.name = "two".parse().expect("a name");
            other
        }],
        "have the same URL",
    );
    for algorithm in ["HS256", "none", "ES256", "rs256"] {
        check(
            algorithm,
            vec![TrustedIssuer { algorithms: Some(vec![algorithm.to_owned()]), ..base() }],
            "the profile's are RS256",
        );
    }
    check("no algorithm", vec![TrustedIssuer { algorithms: Some(Vec::new()), ..base() }], "`algorithms` is empty");
    let keys = KeySource::Uri(Url::parse("http://keys.example/jwks").expect("a URL"));
    check("keys over http", vec![TrustedIssuer { keys, ..base() }], "has to be https");
    check(
        "no CA",
        vec![TrustedIssuer { ca_file: Some("/nonexistent/ca.pem".into()), ..base() }],
        "cannot use the CA file",
    );
}

/// A token works until `exp` and the leeway, and is remembered for longer.
#[tokio::test]
async fn a_used_token_is_remembered_for_longer_than_it_works() {
    let world = World::start().await;
    let token = world.token();
    let key = world.verifier.verify(&token).await.expect("good").key();
    let mut last = world.clock.now();
    while world.refusal(&token).await.is_none() {
        last = world.clock.now();
        world.advance(1);
    }
    assert_eq!(last, Timestamp::from_secs(key.expires) + LEEWAY - Duration::from_secs(1));
    assert!(keep_until(key) > last);
}

/// A profile with an algorithm that does not exist here could not be used as it is.
#[test]
fn every_profile_can_be_verified() {
    for profile in Profile::all() {
        for algorithm in profile.algorithms() {
            assert!(Algorithm::named(algorithm).is_some(), "{}: {algorithm}", profile.name());
        }
    }
}
