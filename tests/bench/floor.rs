//! The floor: the least that an exchange could cost. A bare axum route of the same build checks the
//! RS256 signature of the token in the form with a key that was parsed once, makes one ES256
//! signature, and answers. It writes nothing and decides nothing.

use anyhow::Result;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256},
};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, response::IntoResponse, routing::post};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{net::SocketAddr, sync::Arc};

struct Keys {
    issuer: ParsedPublicKey,
    own: EcdsaKeyPair,
}

/// Serves until it is killed.
pub(crate) fn serve(address: SocketAddr, issuer: &[u8]) -> Result<()> {
    let issuer = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, issuer)?;
    let keys = Arc::new(Keys { issuer, own: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)? });
    let router = Router::new().route("/token", post(exchange)).with_state(keys);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { Ok(axum::serve(tokio::net::TcpListener::bind(address).await?, router).await?) })
}

async fn exchange(State(keys): State<Arc<Keys>>, form: Bytes) -> Result<impl IntoResponse, StatusCode> {
    let token = std::str::from_utf8(&form).ok().and_then(|form| {
        let mut fields = form.split('&').filter_map(|field| field.split_once('='));
        fields.find(|(name, _)| *name == "subject_token").map(|(_, value)| value)
    });
    let (signed, signature) = token.and_then(|token| token.rsplit_once('.')).ok_or(StatusCode::BAD_REQUEST)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| StatusCode::BAD_REQUEST)?;
    keys.issuer.verify_sig(signed.as_bytes(), &signature).map_err(|_| StatusCode::FORBIDDEN)?;
    let made = keys.own.sign(&SystemRandom::new(), &signature).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(format!("{{\"access_token\":\"{}\"}}", URL_SAFE_NO_PAD.encode(made)))
}
