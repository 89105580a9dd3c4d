//! `ssh`: short-lived OpenSSH user certificates over the job's own key.
//!
//! The job sends a public key and keeps the private one. The certificate names the principals, and
//! what the login is limited to; its serial number comes from the lease id, its key id tells who asked.
//! It ends by itself. What is taken back before is listed in a KRL that we publish: it stops a login
//! only on hosts that fetch it, and so the lease stays open until the certificate's end.

mod authority;
mod krl;
#[cfg(test)]
mod tests;

use super::{
    Describe, Document, LocalBackend, MintError, Minted, Order, Publication, Spec, registry::BuildContext, spec,
    spec::SpecReader,
};
use crate::{
    clock::{Clock, Timestamp},
    config::{Env, SecretRef},
};
use authority::Authority;
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, LeaseId};
use schemars::JsonSchema;
use serde::Deserialize;
use ssh_key::{
    PublicKey,
    certificate::{Builder, CertType},
    public::KeyData,
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The certificate authority's private key, by reference: `file:/path`, `env:NAME` or
    /// `credential:NAME`. Ed25519 or ECDSA in OpenSSH's format or PKCS #8, RSA in PKCS #8.
    pub ca_key: SecretRef,
    /// The principals that grants may hand out. Default: any.
    pub principals: Option<Vec<String>>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The principals that the job may log in as, as templates over stable claims.
    pub principals: Vec<String>,
    /// The one command that a login runs, whatever the client asks for. A template over stable claims.
    pub force_command: Option<String>,
    /// The addresses or networks (CIDR) that a login may come from, as templates over stable claims.
    #[serde(default)]
    pub source_address: Vec<String>,
    /// Extensions: OpenSSH's own ones, such as `permit-pty`, with an empty text; those of others
    /// (`name@domain`) with a template over stable claims. Default: none.
    #[serde(default)]
    pub extensions: BTreeMap<String, String>,
}

/// What OpenSSH's sshd understands (PROTOCOL.certkeys, "Extensions").
const FLAGS: &[&str] = &[
    "no-touch-required",
    "permit-X11-forwarding",
    "permit-agent-forwarding",
    "permit-port-forwarding",
    "permit-pty",
    "permit-user-rc",
];
/// Clocks of hosts differ: the certificate is valid from a little earlier.
const BACKDATE: Duration = Duration::from_secs(60);
const MIN_RSA_BITS: usize = 2048;
/// The longest key id, in bytes: sshd writes it into its log.
const MAX_KEY_ID: usize = 1000;

/// No comma and no space, which separate principals in tools and files, and no pattern (`*`, `?`, `!`).
const PRINCIPAL: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "-._@:/+=".contains(c),
    max_len: 128,
    expected: "letters, digits and -._@:/+=",
};

/// A login shell reads the command: nothing that means something to a shell.
const COMMAND: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || " -._/:@=+,".contains(c),
    max_len: 1024,
    expected: "letters, digits, spaces and -._/:@=+, (put anything else into a script on the host)",
};

const ADDRESS: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_hexdigit() || ".:/".contains(c),
    max_len: 49,
    expected: "an address or a network such as 192.0.2.0/24",
};

const EXTENSION: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_graphic() || c == ' ',
    max_len: 256,
    expected: "printable ASCII",
};

/// A backend that signs user certificates.
pub struct Ssh {
    identity: String,
    ca_key: SecretRef,
    env: Env,
    clock: Arc<dyn Clock>,
    principals: Option<Vec<String>>,
    authority: OnceLock<Authority>,
}

struct Compiled {
    principals: Vec<Template>,
    force_command: Option<Template>,
    source_address: Vec<Template>,
    extensions: Vec<(String, Template)>,
}

impl Ssh {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        if let Some(text) = file.principals.iter().flatten().find(|text| !is_principal(text)) {
            return Err(format!(
                "principals: `{}` is no principal: expected {}",
                text.escape_debug(),
                PRINCIPAL.expected
            ));
        }
        Ok(Self {
            identity: context.public_url.clone(),
            ca_key: context.secret(file.ca_key),
            env: context.env.clone(),
            clock: Arc::clone(&context.clock),
            principals: file.principals,
            authority: OnceLock::new(),
        })
    }

    fn authority(&self) -> Result<&Authority, String> {
        if let Some(authority) = self.authority.get() {
            return Ok(authority);
        }
        let text = self.ca_key.read(&self.env).map_err(|error| format!("ca_key: {error}"))?;
        let authority = Authority::parse(text.expose()).map_err(|error| format!("ca_key: {}: {error}", self.ca_key))?;
        Ok(self.authority.get_or_init(|| authority))
    }

    fn may_hand_out(&self, principal: &str) -> Result<(), &'static str> {
        match &self.principals {
            Some(known) if !known.iter().any(|known| known == principal) => {
                Err("this principal is not among those that grants may hand out")
            }
            _ if principal.is_empty() => Err("expected a principal"),
            _ => Ok(()),
        }
    }
}

fn is_principal(text: &str) -> bool {
    (1..=PRINCIPAL.max_len).contains(&text.len()) && text.chars().all(PRINCIPAL.allowed)
}

const NETWORK: &str = "expected an address, or a network with nothing after its length";

/// sshd takes no certificate at all whose network has bits set beyond its length.
fn is_network(text: &str) -> bool {
    text.parse::<IpNet>().is_ok_and(|net| net == net.trunc()) || text.parse::<IpAddr>().is_ok()
}

/// The lease's random half: no two leases share it, and it is never zero, which a KRL cannot list.
fn serial(lease: LeaseId) -> u64 {
    lease.uuid().as_u64_pair().1
}

/// `string` of RFC 4251 §5.
fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    // What is 4 GiB long does not fit into memory twice.
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

/// The job's own key, if it is one that sshd takes.
fn job_key(order: &Order) -> Result<KeyData, MintError> {
    let refuse = |why: &str| spec::unfit("public_key", &why);
    let text = order.public_key.as_deref().ok_or_else(|| refuse("this grant certifies an SSH key: send yours"))?;
    let key = PublicKey::from_openssh(text.trim_end())
        .map_err(|_| refuse("expected an OpenSSH public key, such as the line in id_ed25519.pub"))?;
    match key.key_data() {
        KeyData::Rsa(rsa) if rsa.n.as_positive_bytes().is_none_or(|n| n.len() * 8 < MIN_RSA_BITS) => {
            Err(refuse("an RSA key needs 2048 bits and more"))
        }
        data @ (KeyData::Ed25519(_)
        | KeyData::Ecdsa(_)
        | KeyData::Rsa(_)
        | KeyData::SkEd25519(_)
        | KeyData::SkEcdsaSha2NistP256(_)) => Ok(data.clone()),
        _ => Err(refuse("expected an Ed25519, ECDSA or RSA key")),
    }
}

impl Describe for Ssh {
    fn kind(&self) -> &'static str {
        "ssh"
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn compile_spec(
        &self,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Spec, Vec<Diagnostic>> {
        let file: SpecFile = credential.parse().map_err(|error| vec![error])?;
        let mut reader = SpecReader::new(credential, grant);
        if file.principals.is_empty() {
            reader.refuse(&["principals"], "a certificate without principals is one for nobody", "name at least one");
        }
        let principals = reader.list("principals", &file.principals, &PRINCIPAL, |text| {
            self.may_hand_out(text).err().map(|why| (why, "choose one of the principals in the backend's config"))
        });
        let source_address = reader.list("source_address", &file.source_address, &ADDRESS, |text| {
            (!is_network(text)).then_some((NETWORK, "write 192.0.2.7 or 192.0.2.0/24"))
        });
        let force_command = file.force_command.map(|text| {
            if text.trim().is_empty() {
                reader.refuse(&["force_command"], "an empty command forces nothing", "leave the field out");
            }
            reader.template(&["force_command"], &text, &COMMAND)
        });
        for (name, text) in &file.extensions {
            let flag = FLAGS.contains(&name.as_str());
            let others = name.contains('@') && name.len() <= 64 && name.chars().all(|c| c.is_ascii_graphic());
            if !flag && !others {
                let help = format!("OpenSSH's are {}; others are named name@domain", FLAGS.join(", "));
                reader.refuse(&["extensions", name], "there is no such extension", help);
            } else if flag && !text.is_empty() {
                reader.refuse(&["extensions", name], "this extension takes no value", "write \"\"");
            }
        }
        let extensions = reader.templates("extensions", &file.extensions, &EXTENSION);
        reader.finish(Some(Compiled { principals, force_command: force_command.flatten(), source_address, extensions }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.authority().map(|_| ())
    }

    fn publication(&self, document: &str) -> Option<Publication> {
        match document {
            "ca.pub" => Some(Publication::Fixed(self.authority().map(|authority| Document {
                content_type: "text/plain; charset=utf-8",
                body: authority.public_line().into_bytes(),
            }))),
            "krl" => Some(Publication::Revocations),
            _ => None,
        }
    }

    fn revocations(&self, _document: &str, revoked: &[LeaseId]) -> Result<Document, String> {
        let body = krl::of_serials(revoked.iter().copied().map(serial), self.clock.now());
        Ok(Document { content_type: "application/octet-stream", body })
    }
}

impl LocalBackend for Ssh {
    fn mint(&self, permit: &Permit, order: &Order) -> Result<Minted, MintError> {
        let spec: &Compiled = spec::of(permit)?;
        let key = job_key(order)?;
        let refused = |error: ssh_key::Error| MintError::Refused(format!("the certificate cannot be made: {error}"));
        let seconds = |at: Timestamp| u64::try_from(at.secs()).unwrap_or(0);
        let expires_at = Timestamp::from_secs(order.expires_at.secs());
        let nonce = spec::random::<32>()?.to_vec();
        let mut certificate =
            Builder::new(nonce, key, seconds(order.at - BACKDATE), seconds(expires_at)).map_err(refused)?;
        certificate.cert_type(CertType::User).map_err(refused)?;
        certificate.serial(serial(order.lease)).map_err(refused)?;
        certificate.key_id(spec::stamp(permit, order, MAX_KEY_ID)).map_err(refused)?;
        for (index, template) in spec.principals.iter().enumerate() {
            let field = format!("credential.principals.{index}");
            let principal = spec::render(&field, template, permit)?;
            self.may_hand_out(&principal).map_err(|why| spec::unfit(&field, &why))?;
            certificate.valid_principal(principal).map_err(refused)?;
        }
        if let Some(template) = &spec.force_command {
            let command = spec::render("credential.force_command", template, permit)?;
            certificate.critical_option("force-command", command).map_err(refused)?;
        }
        if !spec.source_address.is_empty() {
            let mut networks = Vec::with_capacity(spec.source_address.len());
            for (index, template) in spec.source_address.iter().enumerate() {
                let field = format!("credential.source_address.{index}");
                let network = spec::render(&field, template, permit)?;
                if !is_network(&network) {
                    return Err(spec::unfit(&field, &NETWORK));
                }
                networks.push(network);
            }
            certificate.critical_option("source-address", networks.join(",")).map_err(refused)?;
        }
        for (name, template) in &spec.extensions {
            let value = spec::render(&format!("credential.extensions.{name}"), template, permit)?;
            certificate.extension(name, value).map_err(refused)?;
        }
        let authority = self.authority().map_err(MintError::Unavailable)?;
        let line = certificate.sign(authority).and_then(|certificate| certificate.to_openssh()).map_err(refused)?;
        Ok(Minted { credential: Credential::ssh_certificate(&line), expires_at })
    }
}
