//! `x509`: short-lived client certificates over the job's own key.
//!
//! The job sends a certificate request and keeps its private key. Of the request only the public key
//! is taken: subject, names and extensions come from the grant. The serial number is the lease id.
//! The certificate ends by itself. What is taken back before is listed in a CRL that we publish: it
//! stops only servers that fetch it, and so the lease stays open until the certificate's end.

#[cfg(test)]
mod tests;

use super::{
    Describe, Document, LocalBackend, MintError, Minted, Order, Publication, Rotation, Spec, registry::BuildContext,
    spec, spec::SpecReader,
};
use crate::{
    clock::{Clock, Timestamp},
    config::{Env, SecretRef},
};
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, LeaseId};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CrlDistributionPoint, CustomExtension, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    RevocationReason, RevokedCertParams, SanType, SerialNumber, SubjectPublicKeyInfo, string::Ia5String,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate, certification_request::X509CertificationRequest, extensions::ParsedExtension,
    prelude::FromDer as _,
};

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The certificate authority's certificate, PEM; what stands above it may follow. Jobs get all of it
    /// behind their own certificate.
    pub ca_certificate: PathBuf,
    /// Its private key in PEM, by reference: `file:/path`, `env:NAME` or `credential:NAME`.
    pub ca_key: SecretRef,
    /// The SPIFFE trust domain that grants may speak for, without `spiffe://`.
    pub trust_domain: Option<String>,
    /// Where servers find the CRL: written into each certificate.
    pub crl_url: Option<String>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The SPIFFE ID, a template over stable claims: the certificate's one URI name.
    pub spiffe_id: Option<String>,
    /// The subject, as templates over stable claims. Without it the subject is empty.
    #[serde(default)]
    pub subject: SubjectFile,
    /// More about the job, as extensions: an object identifier and a template, which becomes a UTF8String.
    #[serde(default)]
    pub extensions: BTreeMap<String, String>,
}

/// The parts of a subject, in the order in which they are written.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubjectFile {
    /// `O`.
    pub organization: Option<String>,
    /// `OU`.
    pub organizational_unit: Option<String>,
    /// `CN`.
    pub common_name: Option<String>,
}

/// Clocks differ: the certificate is valid from a little earlier.
const BACKDATE: Duration = Duration::from_secs(60);
/// So long before its end the authority's certificate is due to be renewed, but never before two thirds of its life.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);
/// How long a server may go on with a CRL that it could not fetch anew.
const CRL_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// SPIFFE-ID §2: a trust domain in lower case, then segments of these characters.
const SPIFFE: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "-._:/".contains(c),
    max_len: 2048,
    expected: "spiffe://trust.domain/path of letters, digits and -._",
};

/// RFC 5280, appendix A.1: a name part has 64 characters. No character that a text form of the subject would escape.
const SUBJECT: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || " -._:/@".contains(c),
    max_len: 64,
    expected: "letters, digits, spaces and -._:/@",
};

const EXTENSION: FieldRules =
    FieldRules { authority: false, allowed: |c| !c.is_control(), max_len: 1024, expected: "no control characters" };

/// A backend that signs client certificates.
pub struct X509 {
    identity: String,
    ca_certificate: PathBuf,
    ca_key: SecretRef,
    env: Env,
    clock: Arc<dyn Clock>,
    trust_domain: Option<String>,
    crl_url: Option<String>,
    authority: OnceLock<Authority>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// How its certificate names its key: a CRL has to name it the same way.
    key_id: KeyIdMethod,
    /// When its certificate is valid.
    valid: Range<Timestamp>,
    /// The whole file, as jobs get it.
    chain: String,
}

struct Compiled {
    spiffe_id: Option<Template>,
    subject: Vec<(&'static str, DnType, Template)>,
    extensions: Vec<(String, Vec<u64>, Template)>,
}

impl X509 {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        if let Some(domain) = &file.trust_domain
            && !is_spiffe_id(&format!("spiffe://{domain}/x"))
        {
            return Err("trust_domain: expected a name such as acme.example, without spiffe://".to_owned());
        }
        if file.crl_url.as_ref().is_some_and(|url| !url.is_ascii() || url::Url::parse(url).is_err()) {
            return Err("crl_url: expected a URL".to_owned());
        }
        Ok(Self {
            identity: context.public_url.clone(),
            ca_certificate: context.path(&file.ca_certificate),
            ca_key: context.secret(file.ca_key),
            env: context.env.clone(),
            clock: Arc::clone(&context.clock),
            trust_domain: file.trust_domain,
            crl_url: file.crl_url,
            authority: OnceLock::new(),
        })
    }

    fn authority(&self) -> Result<&Authority, String> {
        if let Some(authority) = self.authority.get() {
            return Ok(authority);
        }
        let key = self.ca_key.read(&self.env).map_err(|error| format!("ca_key: {error}"))?;
        let key = KeyPair::from_pem(key.expose())
            .map_err(|_| format!("ca_key: {}: expected a private key in PEM that can sign", self.ca_key))?;
        let fail = |why: &str| format!("ca_certificate: {}: {why}", self.ca_certificate.display());
        let chain = std::fs::read_to_string(&self.ca_certificate).map_err(|error| fail(&error.to_string()))?;
        let authority = Authority::of(key, chain).map_err(fail)?;
        Ok(self.authority.get_or_init(|| authority))
    }

    /// The authority, if its certificate is valid now.
    fn in_force(&self) -> Result<&Authority, String> {
        let authority = self.authority()?;
        let (valid, path) = (&authority.valid, self.ca_certificate.display());
        if valid.contains(&self.clock.now()) {
            return Ok(authority);
        }
        let Range { start, end } = valid;
        Err(format!(
            "ca_certificate: {path}: it is valid from {start} to {end} only: renew it, and start the server anew"
        ))
    }

    fn may_speak_for(&self, spiffe_id: &str) -> Result<(), &'static str> {
        if !is_spiffe_id(spiffe_id) {
            return Err("expected spiffe://trust.domain/path");
        }
        let domain = spiffe_id.trim_start_matches("spiffe://").split('/').next();
        if domain == self.trust_domain.as_deref() { Ok(()) } else { Err("expected the backend's `trust_domain`") }
    }
}

impl Authority {
    fn of(key: KeyPair, chain: String) -> Result<Self, &'static str> {
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(chain.as_bytes()).map_err(|_| "expected a certificate in PEM")?;
        let certificate = pem.parse_x509().map_err(|_| "expected a certificate in PEM")?;
        if !certificate.is_ca() {
            return Err("this is no authority's certificate");
        }
        if *certificate.public_key().subject_public_key.data != *key.der_bytes() {
            return Err("it belongs to another key than `ca_key`");
        }
        let issuer = Issuer::from_ca_cert_der(&pem.contents.as_slice().into(), key)
            .map_err(|_| "its key usages cannot be read")?;
        let key_id = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(KeyIdMethod::PreSpecified(id.0.to_vec())),
            _ => None,
        });
        let key_id = key_id.unwrap_or(KeyIdMethod::Sha256);
        let authority = Self { issuer, key_id, valid: validity(&certificate), chain: String::new() };
        // The issuer's name is written anew. Where it comes out different, nobody could follow the chain.
        let list = authority.revocations(&[], OffsetDateTime::UNIX_EPOCH, CRL_LIFETIME);
        let list = list.map_err(|_| "the authority may not sign CRLs: its key usage needs cRLSign")?;
        let name = certificate.subject().as_raw();
        if !list.der().windows(name.len()).any(|window| window == name) {
            return Err("its subject has parts that cannot be written the same way again");
        }
        Ok(Self { chain, ..authority })
    }

    fn revocations(
        &self,
        revoked: &[LeaseId],
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<rcgen::CertificateRevocationList, rcgen::Error> {
        let entry = |lease: &LeaseId| RevokedCertParams {
            serial_number: serial(*lease),
            revocation_time: now,
            reason_code: Some(RevocationReason::CessationOfOperation),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: now + lifetime,
            crl_number: SerialNumber::from_slice(&now.unix_timestamp().to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: self.key_id.clone(),
        };
        params.signed_by(&self.issuer)
    }
}

fn validity(certificate: &X509Certificate<'_>) -> Range<Timestamp> {
    let x509_parser::certificate::Validity { not_before, not_after } = certificate.validity();
    Timestamp::from_secs(not_before.timestamp())..Timestamp::from_secs(not_after.timestamp())
}

fn serial(lease: LeaseId) -> SerialNumber {
    SerialNumber::from_slice(lease.uuid().as_bytes())
}

fn moment(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.secs()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// SPIFFE-ID §2.1, §2.2.
fn is_spiffe_id(text: &str) -> bool {
    let Some((domain, path)) = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let of = |text: &str, allowed: fn(char) -> bool| !text.is_empty() && text.chars().all(allowed);
    of(domain, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c))
        && domain.len() <= 255
        && path.split('/').all(|segment| {
            of(segment, |c| c.is_ascii_alphanumeric() || "-._".contains(c)) && !matches!(segment, "." | "..")
        })
}

/// An object identifier in dotted form, if it can be written (X.660: the first two arcs share a byte).
fn object_identifier(text: &str) -> Option<Vec<u64>> {
    let arcs: Vec<u64> = text.split('.').map(|arc| arc.parse().ok()).collect::<Option<_>>()?;
    let well_formed = arcs.iter().map(u64::to_string).collect::<Vec<_>>().join(".") == text;
    match arcs.as_slice() {
        // 2.5.29: the standard's own extensions, which have their own fields.
        [2, 5, 29, ..] => None,
        [0 | 1, 0..=39, _, ..] | [2, _, _, ..] if well_formed => Some(arcs),
        _ => None,
    }
}

/// A UTF8String in DER (X.690 §8.1.3).
fn utf8_string(text: &str) -> Vec<u8> {
    let length = text.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![0x0c];
    match *length {
        [] => der.push(0),
        [short] if short < 0x80 => der.push(short),
        _ => {
            der.push(0x80 | u8::try_from(length.len()).unwrap_or(8));
            der.extend(length);
        }
    }
    der.extend(text.as_bytes());
    der
}

impl Describe for X509 {
    fn kind(&self) -> &'static str {
        "x509"
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
        if file.spiffe_id.is_some() && self.trust_domain.is_none() {
            let cure = "name it in the server's config, or use `subject`";
            reader.refuse(&["spiffe_id"], "the backend has no `trust_domain`", cure);
        }
        let spiffe_id = file.spiffe_id.and_then(|text| {
            let template = reader.template(&["spiffe_id"], &text, &SPIFFE)?;
            if template.claims().next().is_none()
                && let Err(why) = self.may_speak_for(&text)
            {
                reader.refuse(&["spiffe_id"], why, "write spiffe://trust.domain/path");
            }
            Some(template)
        });
        let SubjectFile { organization, organizational_unit, common_name } = file.subject;
        let subject: Vec<_> = [
            ("organization", DnType::OrganizationName, organization),
            ("organizational_unit", DnType::OrganizationalUnitName, organizational_unit),
            ("common_name", DnType::CommonName, common_name),
        ]
        .into_iter()
        .filter_map(|(name, kind, text)| Some((name, kind, reader.template(&["subject", name], &text?, &SUBJECT)?)))
        .collect();
        if spiffe_id.is_none() && subject.is_empty() {
            reader.refuse(&[], "a certificate without a name is one for nobody", "give `spiffe_id` or `subject`");
        }
        let mut extensions = Vec::with_capacity(file.extensions.len());
        for (name, text) in &file.extensions {
            let path = ["extensions", name.as_str()];
            let template = reader.template(&path, text, &EXTENSION);
            match (object_identifier(name), template) {
                (Some(arcs), Some(template)) => extensions.push((name.clone(), arcs, template)),
                (None, _) => {
                    let cure = "write one such as 1.3.6.1.4.1.57264.1.12, outside of 2.5.29";
                    reader.refuse(&path, "expected an object identifier", cure);
                }
                (_, None) => {}
            }
        }
        reader.finish(Some(Compiled { spiffe_id, subject, extensions }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.in_force().map(|_| ())
    }

    /// Its authority's certificate, which is no secret: it is read here without the key.
    fn rotation(&self) -> Option<Rotation> {
        let valid = match self.authority.get() {
            Some(authority) => authority.valid.clone(),
            None => {
                let chain = std::fs::read(&self.ca_certificate).ok()?;
                validity(&x509_parser::pem::parse_x509_pem(&chain).ok()?.1.parse_x509().ok()?)
            }
        };
        let due = valid.end - RENEW_BEFORE.min(valid.end.since(valid.start) / 3);
        Some(Rotation {
            what: format!("authority's certificate, which ends on {},", valid.end),
            due,
            owner: "whoever runs the authority".to_owned(),
        })
    }

    fn publication(&self, document: &str) -> Option<Publication> {
        match document {
            "ca.pem" => Some(Publication::Fixed(self.authority().map(|authority| Document {
                content_type: "application/x-pem-file",
                body: authority.chain.clone().into_bytes(),
            }))),
            "crl.der" | "crl.pem" => Some(Publication::Revocations),
            _ => None,
        }
    }

    fn revocations(&self, document: &str, revoked: &[LeaseId]) -> Result<Document, String> {
        let list = self.authority()?.revocations(revoked, moment(self.clock.now()), CRL_LIFETIME);
        let list = list.map_err(|error| error.to_string())?;
        Ok(match document {
            // RFC 2585 §4.2.
            "crl.der" => Document { content_type: "application/pkix-crl", body: list.der().to_vec() },
            _ => Document {
                content_type: "application/x-pem-file",
                body: list.pem().map_err(|error| error.to_string())?.into_bytes(),
            },
        })
    }
}

/// RSA's (RFC 8017 A.2.4) and ECDSA's (RFC 3279 §2.2.3): somebody else's signature could be made to fit.
const SHA1_SIGNATURES: [&str; 2] = ["1.2.840.113549.1.1.5", "1.2.840.10045.4.1"];

/// The key of a request whose signature is right: whoever asks has the private key. What else it asks for is not read.
fn requested_key(pem: &str) -> Option<SubjectPublicKeyInfo> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    // RFC 7468 §7, and what older programs write.
    ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"].contains(&pem.label.as_str()).then_some(())?;
    let (rest, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let by_sha1 = SHA1_SIGNATURES.contains(&request.signature_algorithm.algorithm.to_id_string().as_str());
    request.verify_signature().ok().filter(|()| rest.is_empty() && !by_sha1)?;
    SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw).ok()
}

impl LocalBackend for X509 {
    fn mint(&self, permit: &Permit, order: &Order) -> Result<Minted, MintError> {
        let spec: &Compiled = spec::of(permit)?;
        let refuse = |why: &str| spec::unfit("csr", &why);
        let text =
            order.csr.as_deref().ok_or_else(|| refuse("this grant certifies a key: send a certificate request"))?;
        let key = requested_key(text).ok_or_else(|| {
            refuse("expected a PKCS #10 request in PEM, signed with an Ed25519, ECDSA or RSA key (2048 bits and more)")
        })?;
        let refused = |error: rcgen::Error| MintError::Refused(format!("the certificate cannot be made: {error}"));

        let authority = self.in_force().map_err(MintError::Unavailable)?;
        // No chain is good for longer than any part of it.
        let expires_at = Timestamp::from_secs(order.expires_at.secs()).min(authority.valid.end);
        let mut params = CertificateParams::default();
        params.not_before = moment(order.at - BACKDATE);
        params.not_after = moment(expires_at);
        params.serial_number = Some(serial(order.lease));
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.crl_distribution_points =
            self.crl_url.iter().map(|url| CrlDistributionPoint { uris: vec![url.clone()] }).collect();
        for (name, kind, template) in &spec.subject {
            let value = spec::render(&format!("credential.subject.{name}"), template, permit)?;
            params.distinguished_name.push(kind.clone(), value);
        }
        if let Some(template) = &spec.spiffe_id {
            let field = "credential.spiffe_id";
            let id = spec::render(field, template, permit)?;
            self.may_speak_for(&id).map_err(|why| spec::unfit(field, &why))?;
            params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id).map_err(refused)?)];
        }
        for (name, arcs, template) in &spec.extensions {
            let value = spec::render(&format!("credential.extensions.{name}"), template, permit)?;
            params.custom_extensions.push(CustomExtension::from_oid_content(arcs, utf8_string(&value)));
        }
        let certificate = params.signed_by(&key, &authority.issuer).map_err(refused)?;
        let credential = Credential::x509_certificate(&format!("{}{}", certificate.pem(), authority.chain));
        Ok(Minted { credential, expires_at })
    }
}
