//! `oci_registry`: tokens of the distribution token protocol, for a registry that takes ours.
//!
//! jobpass is the registry's token server: a token names the repositories and what
//! may be done there, is signed by a key whose certificate is in the registry's `rootcertbundle`, and
//! ends by itself. The registry takes a token for some time after its end (60 seconds in distribution
//! 2.x), so that tokens are made that much shorter: when the lease ends, the registry refuses.

#[cfg(test)]
mod tests;
mod token_server;

use super::{Describe, LocalBackend, MintError, Minted, Order, Spec, registry::BuildContext, spec, spec::SpecReader};
use crate::{
    clock::Timestamp,
    config::{Env, SecretRef, Span},
};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, LeaseId, Secret};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{borrow::Cow, path::PathBuf, sync::OnceLock, time::Duration};

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The registry as its clients name it: `host` or `host:port`.
    pub registry: String,
    /// The registry's `auth.token.service`.
    pub service: String,
    /// The registry's `auth.token.issuer`. Default: the server's `public_url`.
    pub issuer: Option<String>,
    /// The private key that tokens are signed with, P-256 in PEM, by reference: `file:/path`, `env:NAME` or
    /// `credential:NAME`.
    pub key: SecretRef,
    /// Its certificate, PEM, which the registry's `auth.token.rootcertbundle` holds (or its authority's;
    /// what lies between follows it here).
    pub certificate: PathBuf,
    /// How long after its end the registry still takes a token. Default `60s`.
    pub leeway: Option<Span>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// What the job may do, and where.
    pub access: Vec<AccessFile>,
}

/// What may be done in one repository.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessFile {
    /// The repository, a template over stable claims.
    pub repository: String,
    /// What may be done there.
    pub actions: Vec<Action>,
}

/// What may be done in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Read images.
    Pull,
    /// Write images.
    Push,
    /// Delete them.
    Delete,
}

impl Action {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// The clock skew that distribution 2.x allows (`registry/auth/token/token.go`, `Leeway`).
const LEEWAY: Duration = Duration::from_secs(60);

/// Distribution, `reference.go`: a repository's name has 255 characters at most.
const REPOSITORY: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c),
    max_len: 255,
    expected: "a repository's name of lower-case letters, digits and ._-/",
};

/// A backend that signs registry tokens.
pub struct OciRegistry {
    registry: String,
    service: String,
    issuer: String,
    key: SecretRef,
    certificate: PathBuf,
    env: Env,
    leeway: Duration,
    signer: OnceLock<Signer>,
}

struct Signer {
    pair: EcdsaKeyPair,
    /// The token's first part: RFC 7515 §4.1.6 `x5c` tells the registry which of its certificates it is.
    header: String,
}

struct Compiled(Vec<(Template, Vec<Action>)>);

impl OciRegistry {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        if file.registry.is_empty() || !file.registry.chars().all(host) {
            return Err("registry: expected host or host:port, as in registry.acme.example:5000".to_owned());
        }
        if file.service.is_empty() {
            return Err("service: expected the registry's auth.token.service".to_owned());
        }
        Ok(Self {
            registry: file.registry,
            service: file.service,
            issuer: file.issuer.unwrap_or_else(|| context.public_url.clone()),
            key: context.secret(file.key),
            certificate: context.path(&file.certificate),
            env: context.env.clone(),
            leeway: file.leeway.map_or(LEEWAY, |span| span.0),
            signer: OnceLock::new(),
        })
    }

    fn signer(&self) -> Result<&Signer, String> {
        if let Some(signer) = self.signer.get() {
            return Ok(signer);
        }
        let key = self.key.read(&self.env).map_err(|error| format!("key: {error}"))?;
        let pair = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).ok().and_then(|der| {
            let (algorithm, der) = (&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_der());
            EcdsaKeyPair::from_pkcs8(algorithm, der)
                .or_else(|_| EcdsaKeyPair::from_private_key_der(algorithm, der))
                .ok()
        });
        let pair = pair.ok_or_else(|| format!("key: {}: expected a P-256 private key in PEM", self.key))?;
        let fail = |why: String| format!("certificate: {}: {why}", self.certificate.display());
        let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|error| fail(error.to_string()))?;
        let own = chain.first().and_then(|der| x509_parser::parse_x509_certificate(der).ok());
        let (_, own) = own.ok_or_else(|| fail("expected a certificate in PEM".to_owned()))?;
        if *own.public_key().subject_public_key.data != *pair.public_key().as_ref() {
            return Err(fail("it belongs to another key than `key`".to_owned()));
        }
        let x5c: Vec<String> = chain.iter().map(|der| STANDARD.encode(der)).collect();
        let header = json!({ "alg": "ES256", "typ": "JWT", "x5c": x5c }).to_string();
        Ok(self.signer.get_or_init(|| Signer { pair, header: URL_SAFE_NO_PAD.encode(header) }))
    }
}

impl OciRegistry {
    fn sign(&self, payload: &Payload) -> Result<Secret, String> {
        let failed = |why: String| format!("the token cannot be signed: {why}");
        let signer = self.signer().map_err(failed)?;
        let payload = serde_json::to_vec(payload).map_err(|error| failed(error.to_string()))?;
        let mut token = format!("{}.{}", signer.header, URL_SAFE_NO_PAD.encode(payload));
        let signature = signer.pair.sign(&SystemRandom::new(), token.as_bytes());
        let signature = signature.map_err(|error| failed(error.to_string()))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(Secret::new(token))
    }
}

/// Distribution, `reference.go`: components of letters and digits, with one `.`, one or two `_`, or any
/// number of `-` between them.
fn is_repository(text: &str) -> bool {
    let component = |text: &str| {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let separators = text.split(is_word).filter(|between| !between.is_empty());
        text.starts_with(is_word)
            && text.ends_with(is_word)
            && separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
    };
    text.split('/').all(component)
}

impl Describe for OciRegistry {
    fn kind(&self) -> &'static str {
        "oci_registry"
    }

    fn identity(&self) -> &str {
        &self.registry
    }

    fn compile_spec(
        &self,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Spec, Vec<Diagnostic>> {
        let file: SpecFile = credential.parse().map_err(|error| vec![error])?;
        let mut reader = SpecReader::new(credential, grant);
        if file.access.is_empty() {
            reader.refuse(&["access"], "a token without access can do nothing", "name at least one repository");
        }
        if u64::from(grant.ttl()) <= self.leeway.as_secs() {
            let message = format!(
                "the registry takes a token for {} seconds after its end, and this grant's `ttl` is not longer",
                self.leeway.as_secs()
            );
            reader.refuse(
                &[],
                message,
                "raise the grant's `ttl`, or lower the backend's `leeway` if the registry's is",
            );
        }
        let mut access = Vec::with_capacity(file.access.len());
        for (index, AccessFile { repository, actions }) in file.access.into_iter().enumerate() {
            let at = index.to_string();
            if actions.is_empty() {
                reader.refuse(&["access", &at, "actions"], "nothing is allowed here", "name pull, push or delete");
            }
            let path = ["access", at.as_str(), "repository"];
            let Some(template) = reader.template(&path, &repository, &REPOSITORY) else { continue };
            if template.claims().next().is_none() && !is_repository(&repository) {
                reader.refuse(&path, "this is no repository's name", "write team/app");
            }
            access.push((template, actions));
        }
        reader.finish(Some(Compiled(access)))
    }

    fn preflight(&self) -> Result<(), String> {
        self.signer().map(|_| ())
    }

    fn token_server(&self) -> Option<&OciRegistry> {
        Some(self)
    }
}

/// Distribution, "Token Authentication Implementation".
#[derive(Serialize, Deserialize)]
struct Payload {
    iss: String,
    sub: String,
    aud: String,
    exp: i64,
    nbf: i64,
    iat: i64,
    jti: LeaseId,
    access: Vec<Access>,
}

#[derive(Serialize, Deserialize)]
struct Access {
    r#type: Cow<'static, str>,
    name: String,
    actions: Vec<Action>,
}

impl Access {
    const fn to_repository(name: String, actions: Vec<Action>) -> Self {
        Self { r#type: Cow::Borrowed("repository"), name, actions }
    }
}

impl LocalBackend for OciRegistry {
    fn mint(&self, permit: &Permit, order: &Order) -> Result<Minted, MintError> {
        let spec: &Compiled = spec::of(permit)?;
        let exp = (order.expires_at - self.leeway).secs();
        if exp <= order.at.secs() {
            let why = format!("expected more than the {} seconds that the registry adds", self.leeway.as_secs());
            return Err(spec::unfit("ttl", &why));
        }
        let mut access = Vec::with_capacity(spec.0.len());
        for (index, (template, actions)) in spec.0.iter().enumerate() {
            let field = format!("credential.access.{index}.repository");
            let name = spec::render(&field, template, permit)?;
            if !is_repository(&name) {
                return Err(spec::unfit(&field, &"this is no repository's name"));
            }
            access.push(Access::to_repository(name, actions.clone()));
        }
        let payload = Payload {
            iss: self.issuer.clone(),
            sub: format!("grant:{}", permit.grant().name()),
            aud: self.service.clone(),
            exp,
            nbf: order.at.secs(),
            iat: order.at.secs(),
            jti: order.lease,
            access,
        };
        let token = self.sign(&payload).map_err(MintError::Unavailable)?;
        let credential = Credential::oci_registry(&self.registry, token);
        Ok(Minted { credential, expires_at: Timestamp::from_secs(exp) + self.leeway })
    }
}
