use super::*;
use crate::clock::ManualClock;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use uuid::Uuid;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);

fn open(dir: &Path, clock: &ManualClock, types: &[KeyType]) -> Arc<Keys> {
    let settings = Settings { types: types.to_vec(), ..Settings::default() };
    Keys::open(dir, Arc::new(clock.clone()), settings).expect("keys")
}

fn standings(keys: &Keys) -> Vec<(String, Standing)> {
    keys.published().into_iter().map(|key| (key.kid, key.standing)).collect()
}

fn signer(keys: &Keys, clock: &ManualClock) -> String {
    let token =
        keys.sign_jwt(Algorithm::Es256, clock.now() + Duration::from_secs(60), &json!({"jti": "x"})).expect("signs");
    CompactJwt::parse(token.expose()).expect("a JWT").header.key_id.expect("a kid")
}

#[test]
fn a_key_is_published_before_it_signs_and_after_it_signed() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = ManualClock::at(START);
    let keys = open(dir.path(), &clock, &[KeyType::Es256]);
    let old = signer(&keys, &clock);
    keys.rotate(Rotation::Overlapping).expect("rotates");
    let new = standings(&keys)[1].0.clone();
    let settings = Settings::default();

    let mut at = START;
    for (later, old_is, new_is, signs) in [
        (Duration::ZERO, Some(Standing::Active), Standing::Next, &old),
        (settings.propagation - Duration::from_millis(1), Some(Standing::Active), Standing::Next, &old),
        (settings.propagation, Some(Standing::Retired), Standing::Active, &new),
        (settings.propagation + settings.max_lifetime, Some(Standing::Retired), Standing::Active, &new),
        (settings.propagation + settings.max_lifetime + JWKS_MAX_AGE, None, Standing::Active, &new),
    ] {
        clock.advance((START + later).since(at));
        at = START + later;
        let again = open(dir.path(), &clock, &[KeyType::Es256]);
        for keys in [&keys, &again] {
            let mut expected: Vec<_> = old_is.map(|standing| (old.clone(), standing)).into_iter().collect();
            expected.push((new.clone(), new_is));
            assert_eq!(standings(keys), expected, "after {later:?}");
            assert_eq!(signer(keys, &clock), *signs, "after {later:?}");
            assert_eq!(keys.jwks().contains(&old), old_is.is_some());
            assert!(keys.jwks().contains(&new));
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1, "the old key's file is gone");
}

#[test]
fn a_leaked_key_is_gone_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = ManualClock::at(START);
    let keys = open(dir.path(), &clock, &[KeyType::Es256, KeyType::EdDsa]);
    let leaked = standings(&keys);
    keys.rotate(Rotation::AtOnce).expect("rotates");
    let now = standings(&keys);
    assert_eq!(now.len(), 2);
    assert!(now.iter().all(|(_, standing)| *standing == Standing::Active));
    assert!(leaked.iter().all(|(kid, _)| !keys.jwks().contains(kid)));
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 2);
}

#[test]
fn a_longer_key_is_rotated_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = ManualClock::at(START);
    let short = standings(&open(dir.path(), &clock, &[KeyType::Rs256Bits2048]));
    let both = standings(&open(dir.path(), &clock, &[KeyType::Rs256Bits3072]));
    assert_eq!(both[0], short[0]);
    assert_eq!(both[1].1, Standing::Next);
}

#[test]
fn own_tokens_and_no_others_lead_to_their_lease() {
    let dir = tempfile::tempdir().expect("a directory");
    let other_dir = tempfile::tempdir().expect("a directory");
    let clock = ManualClock::at(START);
    let keys = open(dir.path(), &clock, &[KeyType::Es256, KeyType::EdDsa]);
    let stranger = open(other_dir.path(), &clock, &[KeyType::Es256]);
    let lease = LeaseId::from_uuid(Uuid::from_u128(7));
    let sign = |keys: &Keys, algorithm, jti: &str| {
        keys.sign_jwt(algorithm, START, &json!({"jti": jti})).expect("signs").expose().to_owned()
    };
    let own = sign(&keys, Algorithm::Es256, &lease.to_string());
    let tampered = own.replace('.', ".A");
    let (head, signature) = own.rsplit_once('.').expect("a signature");
    let grafted = format!("{head}.{}", sign(&keys, Algorithm::Es256, "x").rsplit_once('.').expect("a signature").1);
    for (token, expected) in [
        (own.as_str(), Some(lease)),
        (&sign(&keys, Algorithm::EdDsa, &lease.to_string()), Some(lease)),
        (&sign(&keys, Algorithm::Es256, &format!("{lease}.assertion")), None),
        (&sign(&stranger, Algorithm::Es256, &lease.to_string()), None),
        (&tampered, None),
        (&grafted, None),
        (signature, None),
        ("", None),
    ] {
        assert_eq!(keys.verify_own(token), expected, "{token}");
    }
}

#[test]
fn tokens_do_not_outlive_their_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = ManualClock::at(START);
    let keys = open(dir.path(), &clock, &[KeyType::Es256]);
    let longest = START + keys.max_lifetime();
    assert!(keys.sign_jwt(Algorithm::Es256, longest, &json!({})).is_ok());
    let longer = longest + Duration::from_secs(1);
    assert_eq!(keys.sign_jwt(Algorithm::Es256, longer, &json!({})).err(), Some(SignError::TooLong(24 * 3600)));
    assert_eq!(keys.sign_jwt(Algorithm::Rs256, START, &json!({})).err(), Some(SignError::NoKey(Algorithm::Rs256)));
}

#[test]
fn files_that_cannot_be_trusted_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(START));
    let reopen = || Keys::open(dir.path(), clock.clone(), Settings::default());
    let kid = reopen().expect("keys").published()[0].kid.clone();
    let path = dir.path().join(format!("{kid}.json"));
    let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);

    mode(0o640);
    assert!(matches!(reopen(), Err(KeysError::Exposed(_))));
    mode(0o600);
    std::fs::write(dir.path().join("half.new"), "{").expect("writes");
    reopen().expect("a half-written file is removed");
    assert!(!dir.path().join("half.new").exists());

    let text = std::fs::read_to_string(&path).expect("reads");
    for broken in ["", "{}", &text.replace("ES256", "EdDSA"), &text[..text.len() / 2]] {
        std::fs::write(&path, broken).expect("writes");
        let error = reopen().expect_err("refused").to_string();
        assert!(error.contains(&kid) && error.contains("restore"), "{error}");
    }
    std::fs::write(&path, &text).expect("writes");
    std::fs::rename(&path, dir.path().join("other.json")).expect("renames");
    assert!(matches!(reopen(), Err(KeysError::Broken(_))));
}
