//! Reading a token as a cloud does that was told to trust an issuer: by the issuer's own discovery document
//! and key set, with nothing known beforehand but its URL.

use crate::http::client;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde_json::{Map, Value};

/// What a relying party takes.
pub struct Trust<'a> {
    /// The issuer's URL; any, when absent.
    pub issuer: Option<&'a str>,
    /// The issuer whose keys count, where the token's own is no issuer: a client that signs for itself.
    pub keys_of: Option<&'a str>,
    /// The audiences of which the token must have one.
    pub audiences: &'a [&'a str],
    /// The algorithms.
    pub algorithms: &'a [Algorithm],
    /// The longest time between `iat` and `exp`, in seconds.
    pub longest: i64,
    /// The time, in seconds since the epoch.
    pub now: i64,
}

/// The token's claims.
///
/// # Errors
/// What is wrong with the token.
pub async fn verify(token: &str, trust: &Trust<'_>) -> Result<Map<String, Value>, String> {
    if !(4..=20_000).contains(&token.len()) || token.trim() != token {
        return Err("the token is too short, too long, or has white space around it".to_owned());
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| "the token has no header")?;
    if !trust.algorithms.contains(&header.alg) {
        return Err("the token's algorithm is not supported".to_owned());
    }
    let unverified = jsonwebtoken::dangerous::insecure_decode::<Map<String, Value>>(token);
    let issuer = unverified.ok().and_then(|token| token.claims["iss"].as_str().map(str::to_owned)).unwrap_or_default();
    if trust.issuer.is_some_and(|trusted| trusted != issuer) {
        return Err("the token's issuer is not trusted".to_owned());
    }
    let publisher = trust.keys_of.unwrap_or(&issuer);
    let document = json(&format!("{publisher}/.well-known/openid-configuration")).await;
    if document["issuer"] != publisher {
        return Err("the discovery document names another issuer".to_owned());
    }
    let keys: Option<JwkSet> =
        serde_json::from_value(json(document["jwks_uri"].as_str().unwrap_or_default()).await).ok();
    let key = keys.as_ref().and_then(|keys| keys.find(header.kid.as_deref()?));
    let key = key.and_then(|key| DecodingKey::from_jwk(key).ok()).ok_or("no key has this kid")?;
    let mut rules = Validation::new(header.alg);
    rules.set_audience(trust.audiences);
    rules.set_required_spec_claims(&["iss", "sub", "aud", "exp"]);
    rules.validate_exp = false; // below, by the clock of the test
    let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &rules).map_err(|e| e.to_string())?.claims;
    let time = |name: &str| claims.get(name).and_then(Value::as_i64).ok_or(format!("the token has no {name}"));
    let (issued, expires) = (time("iat")?, time("exp")?);
    if issued > trust.now || expires <= trust.now || expires - issued > trust.longest {
        return Err("the token's times are not right".to_owned());
    }
    Ok(claims)
}

async fn json(url: &str) -> Value {
    match client().get(url).send().await {
        Ok(answer) => answer.json().await.unwrap_or_default(),
        Err(_) => Value::Null,
    }
}
