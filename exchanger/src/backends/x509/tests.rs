use super::*;
use crate::backends::{
    Backend,
    testing::{Bench, HOSTILE, NOW, order},
};
use jobpass_protocol::Secret;
use rcgen::BasicConstraints;
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

struct Ca {
    key: String,
    certificate: tempfile::NamedTempFile,
}

/// An authority whose certificate `change` has a say in.
fn authority(change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), params.self_signed(&key).expect("a certificate").pem()).expect("written");
    Ca { key: key.serialize_pem(), certificate: file }
}

fn config(ca: &Ca) -> String {
    let path = ca.certificate.path().display();
    format!(
        "mesh: {{ x509: {{ ca_certificate: {path}, ca_key: env:KEY, trust_domain: acme.example, \
         crl_url: \"https://jobpass.acme.example/x509/mesh/crl.der\" }} }}"
    )
}

fn bench(ca: &Ca) -> Bench {
    Bench::with(&config(ca), [("KEY", ca.key.as_str())])
}

fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    change(&mut params);
    let request = params.serialize_request(&KeyPair::generate().expect("a key")).expect("a request");
    request.pem().expect("PEM")
}

fn mint_for(bench: &Bench, credential: &str, csr: Option<&str>, replaced: &[(&str, &str)]) -> Result<Vec<u8>, String> {
    let permit = bench.permit(credential, "15m", replaced)?;
    let Backend::Local(backend) = bench.backend() else { panic!("x509 is local") };
    let order = Order { csr: csr.map(str::to_owned), ..order(&permit) };
    let minted = backend.mint(&permit, &order).map_err(|error| error.to_string())?;
    let chain = minted.credential.field("certificate").map(Secret::expose).expect("a certificate");
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2, "the authority's follows");
    Ok(parse_x509_pem(chain.as_bytes()).expect("PEM").1.contents)
}

fn mint(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Vec<u8>, String> {
    mint_for(bench, credential, Some(&request(|_| {})), replaced)
}

const ALL: &str = "spiffe_id: \"spiffe://acme.example/repo/{{ claims.repository_id }}\"\n\
                   subject: { organization: Acme, common_name: \"repo {{ claims.repository_id }}\" }\n\
                   extensions: { \"1.3.6.1.4.1.57264.1.12\": \"{{ claims.repository }}\" }";

#[test]
fn a_certificate_says_who_and_nothing_that_was_asked_for() {
    // The request asks for an authority's certificate for a server of another name.
    let csr = request(|asked| {
        asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        asked.subject_alt_names = vec![SanType::DnsName("db.acme.example".try_into().expect("a name"))];
        asked.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        asked.distinguished_name.push(DnType::CommonName, "root");
        asked.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]));
    });
    let der = mint_for(&bench(&authority(|_| {})), ALL, Some(&csr), &[]).expect("a certificate");
    let (_, made) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
    assert_eq!(made.subject().to_string(), "O=Acme, CN=repo 772002");
    assert_eq!(made.raw_serial(), 0x0199_0000_0000_7000_8000_0000_0000_0001_u128.to_be_bytes());
    assert_eq!(
        (made.validity().not_before.timestamp(), made.validity().not_after.timestamp()),
        (NOW.secs() - 60, NOW.secs() + 900)
    );
    assert!(!made.is_ca());
    let names = made.subject_alternative_name().expect("parses").expect("names");
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://acme.example/repo/772002")]);
    let usage = made.extended_key_usage().expect("parses").expect("a usage").value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let claim =
        made.extensions().iter().find(|e| e.oid.to_id_string() == "1.3.6.1.4.1.57264.1.12").expect("an extension");
    assert_eq!((claim.critical, claim.value), (false, &b"\x0c\x08acme/api"[..]));
}

#[test]
fn specs() {
    let ca = authority(|_| {});
    let bench = bench(&ca);
    for (credential, refusal) in [
        ("subject: {}", "one for nobody"),
        ("spiffe_id: spiffe://other.example/x", "the backend's `trust_domain`"),
        ("spiffe_id: spiffe://acme.example", "expected spiffe://trust.domain/path"),
        ("spiffe_id: https://acme.example/x", "expected spiffe://trust.domain/path"),
        ("spiffe_id: spiffe://acme.example/../x", "expected spiffe://trust.domain/path"),
        ("spiffe_id: \"spiffe://acme.example/{{ claims.actor }}\"", "decides here"),
        ("subject: { common_name: \"a,O=b\" }", "',' is not allowed"),
        ("subject: { country: DE }", "country"),
        ("subject: { common_name: x }\nextensions: { \"2.5.29.19\": x }", "expected an object identifier"),
        ("subject: { common_name: x }\nextensions: { \"1.40.1\": x }", "expected an object identifier"),
        ("subject: { common_name: x }\nextensions: { \"1.3.06\": x }", "expected an object identifier"),
    ] {
        let error = mint(&bench, credential, &[]).expect_err(credential);
        assert!(error.contains(refusal), "{credential}: {error}");
    }
}

#[test]
fn hostile_claims_are_carried_or_refused() {
    let ca = authority(|_| {});
    let bench = bench(&ca);
    for (field, rules, claim, credential) in [
        ("spiffe_id", SPIFFE, "repository_id", "spiffe_id: \"spiffe://acme.example/r{{ claims.repository_id }}\""),
        ("subject.common_name", SUBJECT, "repository_id", "subject: { common_name: \"{{ claims.repository_id }}\" }"),
        (
            "extensions.1.2.3",
            EXTENSION,
            "actor",
            "subject: { common_name: x }\nextensions: { \"1.2.3\": \"{{ claims.actor }}\" }",
        ),
    ] {
        for hostile in HOSTILE {
            match mint(&bench, credential, &[(claim, hostile)]) {
                Err(error) => assert!(error.contains(&format!("credential.{field}")), "{field} {hostile:?}: {error}"),
                Ok(der) => {
                    let carried = der.windows(hostile.len()).any(|window| window == hostile.as_bytes());
                    assert!(carried && hostile.chars().all(rules.allowed), "{field} {hostile:?}");
                }
            }
        }
    }
}

#[test]
fn requests_of_jobs() {
    let ca = authority(|_| {});
    let bench = bench(&ca);
    let good = request(|_| {});
    let mut forged = pem_body(&good);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, forged)
    );
    for (csr, refusal) in [
        (None, "csr: this grant certifies a key"),
        (Some(""), "csr: expected a PKCS #10 request"),
        (Some(ca.key.as_str()), "csr: expected a PKCS #10 request"),
        (Some(forged.as_str()), "csr: expected a PKCS #10 request"),
    ] {
        let error = mint_for(&bench, ALL, csr, &[]).expect_err("refused");
        assert!(error.contains(refusal), "{error}");
    }
    assert!(mint_for(&bench, ALL, Some(&good), &[]).is_ok());
}

fn pem_body(pem: &str) -> Vec<u8> {
    parse_x509_pem(pem.as_bytes()).expect("PEM").1.contents
}

#[test]
fn lists_name_what_was_taken_back() {
    let ca = authority(|_| {});
    let bench = bench(&ca);
    let lease = order(&bench.permit(ALL, "15m", &[]).expect("a permit")).lease;
    let backend = bench.backend().describe();
    assert!(backend.publication("ca.key").is_none());
    for (revoked, count) in [(&[][..], 0), (&[lease][..], 1)] {
        let der = backend.revocations("crl.der", revoked).expect("a list").body;
        let (_, list) = x509_parser::parse_x509_crl(&der).expect("a list");
        let serials: Vec<_> = list.iter_revoked_certificates().map(|entry| entry.raw_serial().to_vec()).collect();
        assert_eq!(serials, vec![lease.uuid().as_bytes().to_vec(); count]);
        let pem = backend.revocations("crl.pem", revoked).expect("a list").body;
        assert!(pem.starts_with(b"-----BEGIN X509 CRL-----"));
    }
}

#[test]
fn configs() {
    let ca = authority(|_| {});
    for (from, to, refusal) in [
        ("trust_domain: acme.example", "trust_domain: \"spiffe://acme.example\"", "trust_domain"),
        ("crl_url: \"https:", "crl_url: \"", "crl_url"),
    ] {
        let error = Bench::new(&config(&ca).replacen(from, to, 1)).backends.err().expect("refused");
        assert!(error.contains(refusal), "{error}");
    }
    let other = authority(|_| {});
    let leaf = authority(|params| params.is_ca = IsCa::NoCa);
    let shy = authority(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    for (ca, key, refusal) in [
        (&ca, "hunter2", "ca_key: env:KEY: expected a private key"),
        (&ca, other.key.as_str(), "another key than `ca_key`"),
        (&leaf, leaf.key.as_str(), "no authority's certificate"),
        (&shy, shy.key.as_str(), "cRLSign"),
    ] {
        let bench = Bench::with(&config(ca), [("KEY", key)]);
        let error = bench.backend().describe().preflight().expect_err("refused");
        assert!(error.contains(refusal) && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn nothing_outlives_its_authority() {
    const DAY: i64 = 86_400;
    for (starts, ends, expected, told) in [
        (-365 * DAY, 365 * DAY, Ok(900), false),
        (-365 * DAY, 29 * DAY, Ok(900), true),
        (-3 * DAY, 4 * DAY, Ok(900), false),
        (-6 * DAY, DAY, Ok(900), true),
        (-365 * DAY, 600, Ok(600), true),
        (-365 * DAY, 0, Err("renew it"), true),
        (DAY, 365 * DAY, Err("renew it"), false),
    ] {
        let at = |seconds: i64| moment(Timestamp::from_secs(NOW.secs() + seconds));
        let ca = authority(|params| (params.not_before, params.not_after) = (at(starts), at(ends)));
        let bench = bench(&ca);
        let told_of = bench.backend().describe().rotation().and_then(|rotation| rotation.overdue(NOW));
        assert_eq!(told_of.is_some(), told, "{starts} {ends}: {told_of:?}");
        let started = bench.backend().describe().preflight();
        let made = mint(&bench, "subject: { common_name: x }", &[]);
        match expected {
            Ok(seconds) => {
                assert_eq!(started, Ok(()), "{starts} {ends}");
                let der = made.expect("a certificate");
                let (_, made) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
                assert_eq!(made.validity().not_after.timestamp(), NOW.secs() + seconds, "{starts} {ends}");
            }
            Err(why) => {
                assert!(started.is_err_and(|error| error.contains(why)), "{starts} {ends}");
                assert!(made.is_err_and(|error| error.contains(why)), "{starts} {ends}");
            }
        }
    }
}

#[test]
fn texts_in_der() {
    for (length, start) in
        [(0, &[0x0c, 0][..]), (127, &[0x0c, 127]), (128, &[0x0c, 0x81, 128]), (1024, &[0x0c, 0x82, 4, 0])]
    {
        let der = utf8_string(&"x".repeat(length));
        assert!(der.starts_with(start) && der.len() == start.len() + length, "{length}");
    }
}
