//! Google Cloud, through the front door: a strict Google that trusts nothing but our published keys.

use jobpass_tests::{
    google::{Google, PROVIDER},
    world::{NOON, Setting, World, WorldClock, grant, session},
};
use std::time::Duration;

const ACCOUNT: &str = "deploy@acme-prod.iam.gserviceaccount.com";

async fn start() -> (World, Google) {
    let clock = WorldClock::default();
    let google = Google::start(clock.seconds()).await;
    let backends = format!(
        "  google:\n    gcp: {{ provider: {PROVIDER}, projects: [acme-prod], insecure_http: true, \
         sts_url: \"{0}\", iam_url: \"{0}\" }}\n",
        google.url
    );
    let boundary = "boundary: [{ bucket: releases, roles: [roles/storage.objectViewer], \
                    prefix: \"{{ claims.repository_id }}/\" }]";
    let grants = [
        ("whole", format!("service_account: {ACCOUNT}\n  sub: \"{{{{ claims.repository_id }}}}\"")),
        ("narrow", format!("service_account: {ACCOUNT}\n  {boundary}")),
        ("mail", format!("service_account: {ACCOUNT}\n  scopes: [https://www.googleapis.com/auth/gmail.send]")),
        ("unbound", format!("service_account: {ACCOUNT}")),
        ("templated", "service_account: \"r-{{ claims.repository_id }}@acme-prod.iam.gserviceaccount.com\"".to_owned()),
    ];
    let grants = grants.map(|(name, spec)| (format!("{name}.yaml"), grant(name, "google", &spec)));
    let world = World::of(Setting { grants: grants.into(), backends, ..Setting::default() }).await;
    clock.is(&world);
    google.trust(&world.url);
    google.bind("grant:whole:772002", ACCOUNT);
    google.bind("grant:narrow", ACCOUNT);
    google.bind("grant:mail", ACCOUNT);
    google.bind("grant:templated", "r-772002@acme-prod.iam.gserviceaccount.com");
    (world, google)
}

/// The status of reading an object with a token.
async fn read(world: &World, google: &Google, token: &str, object: &str) -> u16 {
    let url = format!("{}/storage/v1/b/{object}", google.url);
    world.client.get(url).bearer_auth(token).send().await.expect("Google answers").status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_reaches_what_its_grant_says_until_it_expires() {
    let (world, google) = start().await;
    for (name, reaches, does_not) in [
        ("whole", &["releases/o/x", "others/o/x"][..], &[][..]),
        ("narrow", &["releases/o/772002%2Fx"], &["releases/o/772003%2Fx", "releases/o/x", "others/o/772002%2Fx"]),
        ("mail", &[], &["releases/o/x"]),
        ("templated", &["releases/o/x"], &[]),
    ] {
        let answer = world.issue(name).await;
        let token = answer.text_at("/access_token");
        assert_eq!(answer.body["issued_token_type"], "urn:ietf:params:oauth:token-type:access_token", "{name}");
        assert_eq!((&answer.body["token_type"], &answer.body["expires_in"]), (&"Bearer".into(), &900.into()));
        assert_eq!(answer.body["revocable"], false);
        assert_eq!(answer.text_at("/credential/token"), token);
        for object in reaches {
            assert_eq!(read(&world, &google, &token, object).await, 200, "{name} {object}");
        }
        for object in does_not {
            assert_eq!(read(&world, &google, &token, object).await, 403, "{name} {object}");
        }
        let told = world.revoke(&answer.handle()).await;
        assert_eq!(told.body["state"], "outliving", "{name}");
        assert_eq!(told.body["until"], NOON + 900, "it expires by itself then");
    }
    let answer = world.issue("whole").await;
    let (token, lease) = (answer.text_at("/access_token"), answer.text_at("/lease_id"));
    world.revoke(&answer.handle()).await;
    world.advance(Duration::from_secs(899));
    assert_eq!(read(&world, &google, &token, "releases/o/x").await, 200, "before its end");
    world.advance(Duration::from_secs(1));
    assert_eq!(read(&world, &google, &token, "releases/o/x").await, 401, "after its end");
    world.until("the lease is ended", async || world.state_of(&lease).await["state"] == "ended").await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_google_refuses_leaves_no_lease_open() {
    let (world, google) = start().await;
    let refused = world.exchange(&world.token(), "unbound", &[("session", &session())]).await;
    refused.refused(502, "server_error");
    assert!(google.refused()[0].contains("getAccessToken"), "{:?}", google.refused());
    google.trust("http://127.0.0.1:1");
    world.exchange(&world.token(), "whole", &[("session", &session())]).await.refused(502, "server_error");
    assert!(google.refused()[1].contains("not trusted"), "{:?}", google.refused());
    for lease in world.leases().await {
        assert_eq!(serde_json::to_value(lease.state).expect("JSON")["state"], "ended");
    }
    world
        .until("the reason is in the audit log", async || {
            world.audit().iter().any(|line| line.to_string().contains("getAccessToken"))
        })
        .await;
    world.close().await;
}
