//! `signed_jwt`: tokens of our own issuer, for everything that trusts an OIDC issuer.
//!
//! The credential is a JWT that we sign in memory. Its `sub` always starts with `grant:<name>`, so
//! that no grant can speak for another; its audience comes from the backend's own list, which never
//! holds an audience that one of our backends presents to a cloud. It cannot be taken back, so grants
//! keep it short.

use super::{
    Describe, LocalBackend, MintError, Minted, Order, Spec, presented, registry::BuildContext, spec, spec::SpecReader,
};
use crate::{
    clock::Timestamp,
    signing::{Algorithm, Keys},
};
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, GrantName, LeaseId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The audiences that grants may choose from.
    pub audiences: Vec<String>,
    /// What tokens are signed with unless a grant says otherwise. Default: the first of the signing keys.
    pub algorithm: Option<Algorithm>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// `aud`: one of the backend's audiences. May be left out where it has only one.
    pub audience: Option<String>,
    /// What follows `grant:<name>:` in `sub`, a template over stable claims. Without it `sub` is `grant:<name>`.
    pub sub: Option<String>,
    /// More claims of the token, as templates.
    #[serde(default)]
    pub claims: BTreeMap<String, String>,
    /// What the token is signed with.
    pub algorithm: Option<Algorithm>,
}

/// Claims with a meaning of their own (IANA's JSON Web Token Claims registry), and ours: not for grants to set.
const RESERVED_CLAIMS: &[&str] = &[
    "iss",
    "sub",
    "aud",
    "exp",
    "nbf",
    "iat",
    "jti",
    "scope",
    "grant",
    "azp",
    "client_id",
    "nonce",
    "auth_time",
    "acr",
    "amr",
    "act",
    "may_act",
    "cnf",
    "at_hash",
    "c_hash",
    "events",
    "sid",
    "typ",
];

const CLAIM: FieldRules =
    FieldRules { authority: false, allowed: |c| !c.is_control(), max_len: 1024, expected: "no control characters" };

/// A backend that signs tokens with our own keys.
pub struct SignedJwt {
    public_url: String,
    audiences: Vec<String>,
    algorithm: Algorithm,
    keys: Arc<Keys>,
}

struct Compiled {
    audience: String,
    subject: Option<Template>,
    claims: Vec<(String, Template)>,
    algorithm: Algorithm,
}

impl SignedJwt {
    /// Builds the backend. `presented` are the audiences that other backends present to clouds.
    ///
    /// # Errors
    /// When the config cannot be right: no audience, one of `presented`, or an algorithm without a key.
    pub fn build(file: File, context: &BuildContext, presented: &[String]) -> Result<Self, String> {
        if file.audiences.is_empty() {
            return Err("audiences: name at least one audience that jobs may get tokens for".to_owned());
        }
        if let Some(audience) = file.audiences.iter().find(|audience| presented.contains(audience)) {
            return Err(format!(
                "audiences: `{audience}` is what another backend presents to a cloud; a job with such a token could \
                 take that backend's place. Give one of them an audience of its own"
            ));
        }
        let keys = Arc::clone(&context.keys);
        let algorithm = file.algorithm.or_else(|| keys.algorithms().next()).ok_or("there are no signing keys")?;
        if !keys.algorithms().any(|kept| kept == algorithm) {
            return Err(format!("algorithm: there is no {algorithm} key; add it to the config's signing keys"));
        }
        Ok(Self { public_url: context.public_url.clone(), audiences: file.audiences, algorithm, keys })
    }
}

impl Describe for SignedJwt {
    fn kind(&self) -> &'static str {
        "signed_jwt"
    }

    fn identity(&self) -> &str {
        &self.public_url
    }

    fn compile_spec(
        &self,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Spec, Vec<Diagnostic>> {
        let file: SpecFile = credential.parse().map_err(|error| vec![error])?;
        let mut reader = SpecReader::new(credential, grant);
        let audience = match (file.audience, self.audiences.as_slice()) {
            (Some(audience), known) if known.contains(&audience) => Some(audience),
            (None, [only]) => Some(only.clone()),
            (_, known) => {
                let help = format!("the backend's audiences are: {}", known.join(", "));
                reader.refuse(&["audience"], "expected one of the backend's audiences", help);
                None
            }
        };
        let algorithm = file.algorithm.unwrap_or(self.algorithm);
        if !self.keys.algorithms().any(|kept| kept == algorithm) {
            let help = "add it to the signing keys in the server's config";
            reader.refuse(&["algorithm"], format!("there is no {algorithm} key"), help);
        }
        let longest = self.keys.max_lifetime().as_secs();
        if u64::from(grant.ttl()) > longest {
            let message = format!("a signed token lives {longest} seconds at most, and this grant's `ttl` is longer");
            reader.refuse(&[], message, "lower the grant's `ttl`");
        }
        let subject = file.sub.map(|text| reader.template(&["sub"], &text, &presented::SUBJECT));
        for name in file.claims.keys().filter(|name| RESERVED_CLAIMS.contains(&name.as_str())) {
            reader.refuse(&["claims", name], format!("`{name}` is not for grants to set"), "choose another name");
        }
        let claims = reader.templates("claims", &file.claims, &CLAIM);
        reader.finish(audience.map(|audience| Compiled { audience, subject: subject.flatten(), claims, algorithm }))
    }
}

/// The token's payload: RFC 7519 §4.1, RFC 8693 §4.2 `scope`, and the grant that it was issued for.
#[derive(Serialize)]
struct Payload<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: LeaseId,
    grant: &'a GrantName,
    #[serde(skip_serializing_if = "str::is_empty")]
    scope: &'a str,
    #[serde(flatten)]
    more: BTreeMap<&'a str, String>,
}

impl LocalBackend for SignedJwt {
    fn mint(&self, permit: &Permit, order: &Order) -> Result<Minted, MintError> {
        let grant = permit.grant();
        let spec: &Compiled = spec::of(permit)?;
        let subject = presented::subject(spec.subject.as_ref(), permit)?;
        let mut more = BTreeMap::new();
        for (name, template) in &spec.claims {
            let value = spec::render(&format!("credential.claims.{name}"), template, permit)?;
            more.insert(name.as_str(), value);
        }
        let exp = order.expires_at.secs();
        let payload = Payload {
            iss: &self.public_url,
            sub: &subject,
            aud: &spec.audience,
            iat: order.at.secs(),
            nbf: order.at.secs(),
            exp,
            jti: order.lease,
            grant: grant.name(),
            scope: &permit.scope().join(" "),
            more,
        };
        let expires_at = Timestamp::from_secs(exp);
        let token = self
            .keys
            .sign_jwt(spec.algorithm, expires_at, &payload)
            .map_err(|error| MintError::Refused(error.to_string()))?;
        Ok(Minted { credential: Credential::jwt(token), expires_at })
    }
}

#[cfg(test)]
mod tests {
    use crate::backends::{
        Backend,
        testing::{Bench, NOW, order},
    };
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use jobpass_protocol::Secret;
    use serde_json::{Value, json};

    const CONFIG: &str = "oidc: { signed_jwt: { audiences: [https://a.example, https://b.example] } }";

    fn mint(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Value, String> {
        let permit = bench.permit(credential, "15m", replaced)?;
        let Backend::Local(backend) = bench.backend() else { panic!("signed_jwt is local") };
        let minted = backend.mint(&permit, &order(&permit)).map_err(|error| error.to_string())?;
        let token = minted.credential.bearer_token().map(Secret::expose).expect("a token");
        assert_eq!(bench.context.keys.verify_own(token), Some(order(&permit).lease));
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a payload")).expect("base64url");
        let payload: Value = serde_json::from_slice(&payload).expect("JSON");
        assert_eq!(payload["exp"].as_i64(), Some(minted.expires_at.secs()));
        Ok(payload)
    }

    #[test]
    fn a_token_says_who_and_for_what() {
        let credential = "audience: https://b.example\nsub: \"repository_id:{{ claims.repository_id }}\"\n\
                          claims: { repository: \"{{ claims.repository }}\" }";
        let payload = mint(&Bench::new(CONFIG), credential, &[]).expect("a token");
        assert_eq!(
            payload,
            json!({
                "iss": "https://jobpass.acme.example",
                "sub": "grant:deploy-prod:repository_id:772002",
                "aud": "https://b.example",
                "iat": NOW.secs(),
                "nbf": NOW.secs(),
                "exp": NOW.secs() + 900,
                "jti": "01990000-0000-7000-8000-000000000001",
                "grant": "deploy-prod",
                "repository": "acme/api",
            })
        );
    }

    #[test]
    fn specs() {
        let bench = Bench::new(CONFIG);
        let one = Bench::new("oidc: { signed_jwt: { audiences: [https://a.example] } }");
        assert_eq!(mint(&one, "claims: {}", &[]).expect("a token")["sub"], "grant:deploy-prod");
        for (credential, refusal) in [
            ("sub: x", "expected one of the backend's audiences"),
            ("audience: https://c.example", "expected one of the backend's audiences"),
            ("audience: https://a.example\nsubject: x", "subject"),
            ("audience: https://a.example\nsub: \"{{ claims.actor }}\"", "decides here what the credential can do"),
            ("audience: https://a.example\nsub: \"a b\"", "' ' is not allowed"),
            ("audience: https://a.example\nclaims: { aud: x }", "`aud` is not for grants to set"),
            ("audience: https://a.example\nclaims: { x: \"{{ claims.nope }}\" }", "nope"),
            ("audience: https://a.example\nalgorithm: RS256", "no RS256 key"),
            ("audience: https://a.example\nalgorithm: none", "none"),
        ] {
            let error = mint(&bench, credential, &[]).expect_err(credential);
            assert!(error.contains(refusal), "{credential}: {error}");
        }
        let error = bench.permit("audience: https://a.example", "2d", &[]).expect_err("too long");
        assert!(error.contains("lives 86400 seconds"), "{error}");
    }

    #[test]
    fn hostile_claims_are_carried_or_refused() {
        let bench = Bench::new(CONFIG);
        let credential = "audience: https://a.example\nclaims: { actor: \"{{ claims.actor }}\" }";
        for (actor, carried) in [
            (r#"o'cto"cat\"#, true),
            ("{{ claims.ref }}", true),
            ("окто*/кот", true),
            (&"x".repeat(1024), true),
            (&"x".repeat(1025), false),
            ("a\0b", false),
            ("a\nb", false),
        ] {
            match mint(&bench, credential, &[("actor", actor)]) {
                Ok(payload) => assert!(carried && payload["actor"] == actor, "{actor:?}"),
                Err(error) => assert!(!carried && error.contains("credential.claims.actor"), "{actor:?}: {error}"),
            }
        }
    }

    #[test]
    fn configs() {
        for (config, refusal) in [
            ("oidc: { signed_jwt: { audiences: [] } }", "at least one audience"),
            ("oidc: { signed_jwt: { audiences: [a], algorithm: EdDSA } }", "no EdDSA key"),
        ] {
            let error = Bench::new(config).backends.err().expect("refused");
            assert!(error.contains(refusal) && error.contains("backend `oidc`"), "{error}");
        }
    }
}
