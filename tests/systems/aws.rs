//! AWS: real moto behind a front that is as strict as STS, and the real `aws` CLI.

use jobpass_exchanger::demo::{
    Algorithm, Ci,
    issuer::{Issuer, Rotation, Token},
};
use jobpass_tests::{
    http::{client, now},
    moto::Moto,
    ports,
    sts::Sts,
};

const ROLE: &str = "arn:aws:iam::123456789012:role/deploy-api";

/// The front itself: what AWS refuses, it refuses, so that a request that it lets through says something.
#[tokio::test]
async fn the_front_is_as_strict_as_sts() {
    let moto = Moto::start().await;
    let front = Sts::before(&moto).await;
    let issuer = Issuer::start(ports::ANY, Ci::GitHub, now).await.unwrap();
    issuer.rotate(Rotation::Add, Algorithm::EdDsa).unwrap();
    issuer.rotate(Rotation::Add, Algorithm::Es256).unwrap();
    let token = Token::for_audience("sts.amazonaws.com");
    let good = issuer.mint(&token).unwrap();
    let keyless = |changes: &[(&str, &str)]| {
        let mut form = vec![
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", ROLE),
            ("RoleSessionName", "jobpass_0192"),
            ("DurationSeconds", "900"),
            ("WebIdentityToken", &good),
        ];
        form.retain(|(name, _)| changes.iter().all(|(changed, _)| name != changed));
        form.extend(changes.iter().filter(|(_, value)| !value.is_empty()));
        let form: Vec<(String, String)> = form.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        client().post(&front.url).form(&form).send()
    };

    let answer = keyless(&[]).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("<SessionToken>"), "moto answers through the front");
    assert_eq!(front.accepted()[0].claims["repository"], "acme/api");

    let minted = |token: &Token| issuer.mint(token).unwrap();
    let long = "x".repeat(65);
    for (name, value, code) in [
        ("DurationSeconds", "899", "ValidationError"),
        ("DurationSeconds", "3601", "ValidationError"),
        ("RoleSessionName", "", "ValidationError"),
        ("RoleSessionName", "a b", "ValidationError"),
        ("RoleSessionName", long.as_str(), "ValidationError"),
        ("RoleArn", "deploy-api", "ValidationError"),
        ("Policy", "{}", "MalformedPolicyDocument"),
        ("Tags.member.1.Key", "a", "ValidationError"), // session tags travel in the token here
        ("Action", "AssumeRole", "MissingAuthenticationToken"),
        ("Action", "GetFederationToken", "InvalidAction"),
        ("WebIdentityToken", "garbage", "InvalidIdentityToken"),
        ("WebIdentityToken", &format!("{good}\n"), "InvalidIdentityToken"),
        ("WebIdentityToken", &format!("{}AAAA", &good[..good.len() - 4]), "InvalidIdentityToken"),
        ("WebIdentityToken", &minted(&Token::for_audience("another")), "InvalidIdentityToken"),
        ("WebIdentityToken", &minted(&token.clone().aged(600)), "InvalidIdentityToken"),
        ("WebIdentityToken", &minted(&token.clone().claim("sub", serde_json::Value::Null)), "InvalidIdentityToken"),
        ("WebIdentityToken", &minted(&token.clone().signed_with(Algorithm::EdDsa)), "InvalidIdentityToken"),
    ] {
        let answer = keyless(&[(name, value)]).await.unwrap();
        assert_eq!(answer.status(), 400, "{name}={value}");
        let body = answer.text().await.unwrap();
        assert!(body.contains(&format!("<Code>{code}</Code>")), "{name}={value}: {body}");
    }
    assert_eq!(front.accepted().len(), 1);
}
