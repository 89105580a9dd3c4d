use super::*;
use crate::backends::{
    Backend,
    testing::{Bench, HOSTILE, NOW, order},
};
use jobpass_protocol::Secret;
use ssh_key::{Algorithm, Certificate};

/// Made with `ssh-keygen`, for these tests only; what it signs is trusted by nobody.
const CA: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
QyNTUxOQAAACB6eJFKt6nYPSPfBRMM88+pfT/zuShEzR7CECUyVKdvYQAAAIiuKaLIrimi
yAAAAAtzc2gtZWQyNTUxOQAAACB6eJFKt6nYPSPfBRMM88+pfT/zuShEzR7CECUyVKdvYQ
AAAEANVfNzHKnK5J7bXhdq02/jJs7FwP+RPZnUDmzWLkbFXXp4kUq3qdg9I98FEwzzz6l9
P/O5KETNHsIQJTJUp29hAAAABHRlc3QB
-----END OPENSSH PRIVATE KEY-----
";
const JOB: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFMoXpuoHKef0ugRx8inhR6wkULR1Fji9QWeXCN6ATyz job";

fn config(more: &str) -> String {
    format!("hosts: {{ ssh: {{ ca_key: env:SSH_CA{more} }} }}")
}

fn mint_for(
    bench: &Bench,
    credential: &str,
    key: Option<&str>,
    replaced: &[(&str, &str)],
) -> Result<Certificate, String> {
    let permit = bench.permit(credential, "15m", replaced)?;
    let Backend::Local(backend) = bench.backend() else { panic!("ssh is local") };
    let order = Order { public_key: key.map(str::to_owned), ..order(&permit) };
    let minted = backend.mint(&permit, &order).map_err(|error| error.to_string())?;
    assert_eq!(minted.expires_at, order.expires_at);
    let line = minted.credential.field("certificate").map(Secret::expose).expect("a certificate");
    Ok(Certificate::from_openssh(line).expect("OpenSSH's format"))
}

fn mint(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Certificate, String> {
    mint_for(bench, credential, Some(JOB), replaced)
}

#[test]
fn a_certificate_says_who_and_for_what() {
    let credential = "principals: [\"repo-{{ claims.repository_id }}\", deploy]\nforce_command: /usr/bin/deploy {{ claims.repository_id }}\n\
                      source_address: [192.0.2.0/24, \"2001:db8::1\"]\nextensions: { permit-pty: \"\", \"run@acme.example\": \"{{ claims.run_id }}\" }";
    let made = mint(&Bench::with(&config(""), [("SSH_CA", CA)]), credential, &[]).expect("a certificate");
    assert_eq!(made.valid_principals(), ["repo-772002", "deploy"]);
    assert_eq!(made.serial(), 0x8000_0000_0000_0001);
    assert_eq!(made.cert_type(), CertType::User);
    let now = NOW.secs().unsigned_abs();
    assert_eq!((made.valid_after(), made.valid_before()), (now - 60, now + 900));
    assert!(
        made.key_id()
            .starts_with("jobpass lease 01990000-0000-7000-8000-000000000001 grant deploy-prod issuer github ")
    );
    assert!(made.key_id().contains("772002"), "{}", made.key_id());
    let options: Vec<_> = made.critical_options().iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(options, [("force-command", "/usr/bin/deploy 772002"), ("source-address", "192.0.2.0/24,2001:db8::1")]);
    assert_eq!(made.extensions().get("permit-pty").map(String::as_str), Some(""));
    assert!(made.extensions().get("run@acme.example").is_some_and(|run| !run.is_empty()));
    assert_eq!(made.public_key(), PublicKey::from_openssh(JOB).expect("a key").key_data());
    assert_eq!(made.signature().algorithm(), Algorithm::Ed25519);
}

#[test]
fn specs() {
    let bench = Bench::with(&config(", principals: [deploy, \"repo-772002\"]"), [("SSH_CA", CA)]);
    assert!(mint(&bench, "principals: [\"repo-{{ claims.repository_id }}\"]", &[]).is_ok());
    for (credential, refusal) in [
        ("principals: []", "one for nobody"),
        ("principals: [root]", "not among those"),
        ("principals: [\"{{ claims.repository_id }}\"]", "credential.principals.0: this principal is not among"),
        ("principals: [\"{{ claims.actor }}\"]", "decides here what the credential can do"),
        ("principals: [\"a,b\"]", "',' is not allowed"),
        ("principals: [\"*\"]", "'*' is not allowed"),
        ("principal: deploy", "principal"),
        ("principals: [deploy]\nforce_command: \"a; b\"", "';' is not allowed"),
        ("principals: [deploy]\nforce_command: \"\"", "forces nothing"),
        ("principals: [deploy]\nsource_address: [everywhere]", "is not allowed"),
        ("principals: [deploy]\nsource_address: [1.2.3]", "an address, or a network"),
        ("principals: [deploy]\nsource_address: [192.0.2.7/24]", "an address, or a network"),
        ("principals: [deploy]\nsource_address: [\"2001:db8::1/64\"]", "an address, or a network"),
        ("principals: [deploy]\nsource_address: [\"{{ claims.repository_id }}\"]", "credential.source_address.0"),
        ("principals: [deploy]\nextensions: { permit-everything: \"\" }", "no such extension"),
        ("principals: [deploy]\nextensions: { permit-pty: yes please }", "takes no value"),
        ("principals: [deploy]\nextensions: { \"a@b\": \"{{ claims.actor }}\" }", "decides here"),
    ] {
        let error = mint(&bench, credential, &[]).expect_err(credential);
        assert!(error.contains(refusal), "{credential}: {error}");
    }
}

#[test]
fn hostile_claims_are_carried_or_refused() {
    let bench = Bench::with(&config(""), [("SSH_CA", CA)]);
    for (field, rules, credential) in [
        ("principals.0", PRINCIPAL, "principals: [\"r-{{ claims.repository_id }}\"]"),
        ("force_command", COMMAND, "principals: [deploy]\nforce_command: deploy {{ claims.repository_id }}"),
        ("source_address.0", ADDRESS, "principals: [deploy]\nsource_address: [\"{{ claims.repository_id }}\"]"),
        ("extensions.x@y", EXTENSION, "principals: [deploy]\nextensions: { \"x@y\": \"{{ claims.repository_id }}\" }"),
    ] {
        for hostile in HOSTILE {
            match mint(&bench, credential, &[("repository_id", hostile)]) {
                Err(error) => assert!(error.contains(&format!("credential.{field}")), "{field} {hostile:?}: {error}"),
                Ok(made) => {
                    let shown =
                        format!("{:?} {:?} {:?}", made.valid_principals(), made.critical_options(), made.extensions());
                    let escaped = format!("{hostile:?}");
                    assert!(hostile.chars().all(rules.allowed), "{field}: {shown}");
                    assert!(shown.contains(escaped.trim_matches('"')), "{field} {hostile:?}: {shown}");
                }
            }
        }
    }
    // The note takes anything, as ASCII.
    for hostile in HOSTILE {
        let made = mint(&bench, "principals: [deploy]", &[("actor", hostile)]).expect("carried");
        assert!(made.key_id().len() <= MAX_KEY_ID && made.key_id().bytes().all(|b| (0x20..0x7f).contains(&b)));
    }
}

#[test]
fn keys_of_jobs() {
    let bench = Bench::with(&config(""), [("SSH_CA", CA)]);
    let certificate = mint(&bench, "principals: [deploy]", &[]).and_then(|c| c.to_openssh().map_err(|e| e.to_string()));
    for (key, refusal) in [
        (None, "public_key: this grant certifies an SSH key"),
        (Some(""), "expected an OpenSSH public key"),
        (Some(CA), "expected an OpenSSH public key"),
        (Some("ssh-ed25519 AAAA"), "expected an OpenSSH public key"),
        (Some("ssh-ed25519 AAAA\nssh-ed25519 BBBB"), "expected an OpenSSH public key"),
        (certificate.as_deref().ok(), "expected"),
    ] {
        let error = mint_for(&bench, "principals: [deploy]", key, &[]).expect_err("refused");
        assert!(error.contains(refusal), "{key:?}: {error}");
    }
}

#[test]
fn configs() {
    let error = Bench::new(&config(", principals: [\"a b\"]")).backends.err().expect("refused");
    assert!(error.contains("principals") && error.contains("backend `hosts`"), "{error}");
    let encrypted = CA.replacen("b3BlbnNzaC1rZXktdjEAAAAABG5vbmU", "b3BlbnNzaC1rZXktdjEAAAAACmFlczI", 1);
    for (key, refusal) in [
        (None, "ca_key: the secret env:SSH_CA is not there"),
        (Some("hunter2"), "ca_key: env:SSH_CA: expected an OpenSSH or PKCS #8"),
        (Some(encrypted.as_str()), "ca_key: env:SSH_CA: expected"),
    ] {
        let bench = Bench::with(&config(""), key.map(|key| ("SSH_CA", key)));
        let error = bench.backend().describe().preflight().expect_err("refused");
        assert!(error.contains(refusal) && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn lists_are_as_openssh_writes_them() {
    let bench = Bench::with(&config(""), [("SSH_CA", CA)]);
    let backend = bench.backend().describe();
    assert!(backend.publication("id_ed25519").is_none());
    let Some(Publication::Fixed(Ok(ca))) = backend.publication("ca.pub") else { panic!("published") };
    assert!(ca.body.starts_with(b"ssh-ed25519 AAAA"));
    let empty = backend.revocations("krl", &[]).expect("a list");
    assert_eq!((&empty.body[..8], empty.body.len()), (&b"SSHKRL\n\0"[..], 51));
    let order = order(&bench.permit("principals: [deploy]", "15m", &[]).expect("a permit"));
    let one = backend.revocations("krl", &[order.lease]).expect("a list").body;
    assert!(one.ends_with(&[0x20, 0, 0, 0, 8, 0x80, 0, 0, 0, 0, 0, 0, 1]), "{one:x?}");
}
