//! Whatever strangers send: a 4xx in the shape of RFC 6749, nothing of it in answers or logs, nothing on disk.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_exchanger::demo::issuer::Token;
use jobpass_tests::world::{NOON, World};
use serde_json::{Value, json};

const EXCHANGE: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
                        &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt";
const FORM: &str = "application/x-www-form-urlencoded";

/// Posts a body as it is; checks what holds for every refusal, and that the answer repeats nothing of `secret`.
async fn refused(
    world: &World,
    name: &str,
    path: &str,
    kind: &str,
    body: Vec<u8>,
    secret: &str,
    expected: (u16, &str),
) {
    let request = world.client.post(format!("{}{path}", world.url)).header("content-type", kind).body(body);
    let response = request.send().await.expect("the server answers");
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
    assert_eq!(header("cache-control").as_deref(), Some("no-store"), "{name}");
    assert_eq!(header("content-type").as_deref(), Some("application/json"), "{name}");
    let text = response.text().await.expect("a body");
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{name}: not JSON: {text}"));
    assert_eq!((status, body["error"].as_str()), (expected.0, Some(expected.1)), "{name}: {text}");
    assert!(body["error_description"].as_str().is_some_and(|words| words.len() > 10), "{name}: {text}");
    for part in secret.split('.').filter(|part| part.len() > 8) {
        assert!(!text.contains(part), "{name} is repeated: {text}");
    }
}

/// Nothing was decided, nothing was leased, and nothing was written but that the server started.
async fn close_untouched(mut world: World) {
    assert!(world.leases().await.is_empty());
    world.stop_server().await;
    let audit = world.audit();
    let events: Vec<&Value> = audit.iter().filter_map(|line| line.pointer("/entry/event")).collect();
    assert!(!events.is_empty() && events.iter().all(|event| *event == "server"), "{events:?}");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens() {
    let world = World::start().await;
    let good = world.token();
    let (input, signature) = good.rsplit_once('.').expect("compact");
    let (header, payload) = input.split_once('.').expect("compact");
    let plain = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("UTF-8");
    let inside = plain(payload).strip_suffix('}').expect("an object").to_owned();
    let signed = |payload: String| world.issuer.sign(&plain(header), &payload).expect("a signature");
    let minted = |change: fn(Token) -> Token| world.token_with(change);
    let unsigned = format!("{}.{payload}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
    for (name, token) in [
        ("not a token", "hunter2-hunter2".to_owned()),
        ("not three parts", format!("{header}.{payload}")),
        ("not base64url", format!("{header}.{payload}.!!!!!!!!!!")),
        ("oversized", "a".repeat(20_000)),
        ("not JSON", signed("these are words".to_owned())),
        ("a list", signed("[1]".to_owned())),
        ("exp of the wrong type", minted(|token| token.claim("exp", "tomorrow"))),
        ("a claim of the wrong type", minted(|token| token.claim("repository_id", json!({ "a": 1 })))),
        ("expired", minted(|token| token.aged(400))),
        ("issued in the future", minted(|token| token.aged(-400))),
        ("not valid yet", minted(|token| token.claim("nbf", NOON + 120))),
        ("for a hundred years", minted(|token| token.lasting(3_153_600_000))),
        ("too old", minted(|token| token.aged(3000).lasting(7200))),
        ("for another audience", minted(|token| token.claim("aud", "https://elsewhere.example"))),
        ("for several audiences", {
            let url = world.url.clone();
            world.token_with(|token| token.claim("aud", json!([url, "https://elsewhere.example"])))
        }),
        ("of an unknown issuer", minted(|token| token.claim("iss", "https://unknown-issuer.example"))),
        ("of two issuers", minted(|token| token.claim("iss", json!(["https://unknown-issuer.example"])))),
        ("unknown kid", minted(|token| token.header("kid", "unknown-key"))),
        ("a bad signature", format!("{input}.{}", signature.chars().rev().collect::<String>())),
        ("alg none", unsigned),
        ("HMAC", minted(|token| token.header("alg", "HS256"))),
        ("another algorithm", minted(|token| token.header("alg", "ES256"))),
        ("jku", minted(|token| token.header("jku", "https://evil-keys.example/jwks"))),
        ("x5u", minted(|token| token.header("x5u", "https://evil-keys.example/cert"))),
        ("jwk", minted(|token| token.header("jwk", json!({ "kty": "oct", "k": "c2VjcmV0" })))),
        ("crit", minted(|token| token.header("crit", json!(["exp"])))),
        ("wrong typ", minted(|token| token.header("typ", "at+jwt"))),
        ("duplicate claims", signed(format!(r#"{inside},"repository_id":"772002"}}"#))),
        ("deep nesting", signed(format!(r#"{inside},"x":{}{}}}"#, "[".repeat(3000), "]".repeat(3000)))),
        ("a foreign tenant", minted(|token| token.claim("repository_owner_id", "9999999"))),
        ("no jti", minted(|token| token.claim("jti", Value::Null))),
    ] {
        world.keep_secret(&token);
        let body = format!(
            "{EXCHANGE}&audience=id&subject_token={}",
            url::form_urlencoded::byte_serialize(token.as_bytes()).collect::<String>()
        );
        refused(&world, name, "/token", FORM, body.into_bytes(), &token, (400, "invalid_request")).await;
    }
    close_untouched(world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_forms() {
    let world = World::start().await;
    let token = world.token();
    let with = |more: &str| format!("{EXCHANGE}&audience=id&subject_token={token}{more}").into_bytes();
    let invalid = (400, "invalid_request");
    for (name, path, kind, body, expected) in [
        ("empty", "/token", FORM, Vec::new(), invalid),
        ("noise", "/token", FORM, vec![0xff, 0, b'&', 0xfe, b'=', b'%'], invalid),
        ("a repeated field", "/token", FORM, with("&audience=ledger"), invalid),
        ("a repeated token", "/token", FORM, with(&format!("&subject_token={token}")), invalid),
        ("a repeated field that is not ours", "/token", FORM, with("&x=1&x=1"), invalid),
        ("resource", "/token", FORM, with("&resource=https%3A%2F%2Fcloud.example"), invalid),
        ("actor_token", "/token", FORM, with("&actor_token=abc"), invalid),
        ("no token", "/token", FORM, format!("{EXCHANGE}&audience=id").into_bytes(), invalid),
        ("no grant", "/token", FORM, format!("{EXCHANGE}&subject_token={token}").into_bytes(), invalid),
        ("ttl of zero", "/token", FORM, with("&ttl=0"), invalid),
        ("ttl below zero", "/token", FORM, with("&ttl=-1"), invalid),
        ("ttl in words", "/token", FORM, with("&ttl=long"), invalid),
        ("ttl beyond 32 bits", "/token", FORM, with("&ttl=4294967296"), invalid),
        ("scope with quotes", "/token", FORM, with("&scope=%22all%22"), invalid),
        ("a short session", "/token", FORM, with("&session=abc"), invalid),
        ("a session of words", "/token", FORM, with("&session=correct%20horse%20battery%20staple%20and%20more"), invalid),
        ("another token type", "/token", FORM, format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token={token}&audience=id&subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Asaml2").into_bytes(), invalid),
        ("another grant type", "/token", FORM, b"grant_type=client_credentials".to_vec(), (400, "unsupported_grant_type")),
        ("a handle of words", "/token", FORM, b"grant_type=refresh_token&refresh_token=hunter2".to_vec(), (400, "invalid_grant")),
        ("no handle", "/token", FORM, b"grant_type=refresh_token".to_vec(), invalid),
        ("nothing to revoke", "/revoke", FORM, b"x=y".to_vec(), invalid),
        ("two to revoke", "/revoke", FORM, b"token=a&token=b".to_vec(), invalid),
        ("too many fields", "/token", FORM, (0..2000).map(|n| format!("f{n}=1&")).collect::<String>().into_bytes(), invalid),
        ("an oversized body", "/token", FORM, vec![b'a'; 70_000], (413, "invalid_request")),
        ("an oversized revocation", "/revoke", FORM, vec![b'a'; 70_000], (413, "invalid_request")),
        ("JSON", "/token", "application/json", b"{}".to_vec(), (415, "invalid_request")),
        ("multipart", "/token", "multipart/form-data; boundary=x", b"--x--".to_vec(), (415, "invalid_request")),
        ("no such path", "/tokens", FORM, with(""), (404, "invalid_request")),
        ("a path that wants GET", "/.well-known/jwks.json", FORM, with(""), (405, "invalid_request")),
    ] {
        refused(&world, name, path, kind, body, &token, expected).await;
    }
    let get = world.client.get(format!("{}/token?subject_token={token}", world.url)).send().await.expect("an answer");
    assert_eq!(get.status(), 405);
    assert!(!get.text().await.expect("a body").contains(&token));
    close_untouched(world).await;
}
