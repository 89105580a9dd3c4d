//! Every templated field of every backend with hostile claims, through the front door of one server: each value is
//! carried, or refused with the field named, or its object is not there; nothing breaks, and nothing stays.

use super::{System, kubernetes, mysql, oci_registry, postgres, rabbitmq, redis, ssh, x509};
use crate::world::issuer;
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{delete, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_exchanger::demo::{Ci, issuer::Token, ledger::Ledger};
use jobpass_tests::{
    authorization_server::AuthorizationServer,
    aws::{Aws, ROLE},
    corpus::hostile,
    entra::{Entra, TENANT},
    github_api::GitHubApi,
    gitlab_api::{ADMIN_TOKEN, GitLabApi},
    google::{Google, PROVIDER},
    http::{client, now},
    https,
    openbao::OpenBao,
    ports,
    server::Setup,
};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const SEALING: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
/// The claim that everybody here may choose.
const C: &str = "{{ claims.repository_id }}";
const AUDIENCE: &str = "bao.acme.example";
const CLIENT: &str = "00000000-0000-4000-8000-000000000001";
const ACCOUNT: &str = "deploy@acme-prod.iam.gserviceaccount.com";

/// Backend, field, `credential:`, and what its system says where there is no such object; nothing: it makes it.
fn fields() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let schema = |schema: &str, tables: Value| json!({ "privileges": [{ "schema": schema, "tables": tables, "allow": ["select"] }] });
    let statement = |statement: &str| json!({ "roles": ["app"], "statements": [statement] });
    let set = format!("ALTER ROLE {{{{ role }}}} SET application_name = {C}");
    let named = "GRANT {{ claims.repository_id | identifier }} TO {{ role }}";
    let redis = |field: &str| json!({ field: [format!("ci:{C}:*")], "commands": ["@read"] });
    let rabbit = |field: &str| json!({ "vhost": "ci", field: [format!("r{C}-*")] });
    let certificate = |field: &str| json!({ "spiffe_id": "spiffe://acme.example/x", "subject": { field: C } });
    let bucket = |bucket: &str, prefix: &str| json!({ "service_account": ACCOUNT, "sub": "bound", "boundary": [{ "bucket": bucket, "prefix": prefix, "roles": ["roles/storage.objectViewer"] }] });
    let entra = |sub: &str| json!({ "client_id": CLIENT, "scope": "https://management.example/.default", "sub": sub });
    let gitlab = |field: &str| json!({ field: C, "scopes": ["read_repository"], "access_level": "reporter" });
    let github = |field: &str| json!({ field: [C], "permissions": { "contents": "read" } });
    vec![
        ("postgres", "roles", json!({ "roles": [C] }), ""),
        ("postgres", "privileges", schema(C, Value::Null), "does not exist"),
        ("postgres", "privileges", schema("ci_772002", json!([C])), "does not exist"),
        ("postgres", "statements", statement(&set), ""),
        ("postgres", "statements", statement(named), "does not exist"),
        ("mysql", "privileges", json!({ "privileges": [{ "database": C, "allow": ["select"] }] }), "ccess denied"),
        (
            "mysql",
            "privileges",
            json!({ "privileges": [{ "database": "app", "table": C, "allow": ["select"] }] }),
            "denied",
        ),
        ("redis", "keys", redis("keys"), ""),
        ("redis", "read_keys", redis("read_keys"), ""),
        ("redis", "channels", redis("channels"), ""),
        ("rabbitmq", "vhost", json!({ "vhost": C, "read": ["x"] }), "refused"),
        ("rabbitmq", "configure", rabbit("configure"), ""),
        ("rabbitmq", "write", rabbit("write"), ""),
        ("rabbitmq", "read", rabbit("read"), ""),
        ("ssh", "principals", json!({ "principals": [C] }), ""),
        ("ssh", "force_command", json!({ "principals": ["deploy"], "force_command": format!("echo {C}") }), ""),
        ("ssh", "source_address", json!({ "principals": ["deploy"], "source_address": [C] }), ""),
        ("ssh", "extensions", json!({ "principals": ["deploy"], "extensions": { "run@jobpass.example": C } }), ""),
        ("x509", "spiffe_id", json!({ "spiffe_id": format!("spiffe://acme.example/ci/{C}") }), ""),
        ("x509", "subject", certificate("common_name"), ""),
        ("x509", "subject", certificate("organization"), ""),
        ("x509", "subject", certificate("organizational_unit"), ""),
        (
            "x509",
            "extensions",
            json!({ "spiffe_id": "spiffe://acme.example/x", "extensions": { "1.3.6.1.4.1.57264.1.12": C } }),
            "",
        ),
        ("oci", "access", json!({ "access": [{ "repository": format!("ci/{C}/app"), "actions": ["pull"] }] }), ""),
        ("kubernetes", "service_account", json!({ "namespace": "prod", "service_account": C }), "not found"),
        (
            "kubernetes",
            "annotations",
            json!({ "namespace": "prod", "service_account": "deploy", "annotations": { "run": C } }),
            "",
        ),
        ("vault", "role", json!({ "role": C }), "refused: 400"),
        ("vault", "sub", json!({ "role": "ci", "sub": C }), ""),
        ("vault", "read", json!({ "role": "ci", "read": format!("secret/data/{C}") }), "refused"),
        ("ledger", "parameters", json!({ "parameters": { "note": C } }), ""),
        ("oidc", "sub", json!({ "sub": C }), ""),
        ("oidc", "claims", json!({ "claims": { "said": C } }), ""),
        ("aws", "sub", json!({ "role_arn": ROLE, "sub": C }), ""),
        ("aws", "session_tags", json!({ "role_arn": ROLE, "session_tags": { "said": C } }), ""),
        ("aws", "source_identity", json!({ "role_arn": ROLE, "source_identity": C }), ""),
        ("google", "sub", json!({ "service_account": ACCOUNT, "sub": C }), "getAccessToken"),
        (
            "google",
            "service_account",
            json!({ "service_account": format!("r-{C}@acme-prod.iam.gserviceaccount.com") }),
            "getAccessToken",
        ),
        ("google", "boundary.0.bucket", bucket(C, "x/"), ""),
        ("google", "boundary.0.prefix", bucket("releases", &format!("{C}/")), ""),
        ("entra", "sub", entra(C), "AADSTS"),
        ("exchange", "sub", json!({ "scopes": ["read"], "sub": C }), ""),
        ("exchange", "scopes", json!({ "scopes": [format!("repo:{C}")] }), "invalid_scope"),
        ("client", "scopes", json!({ "scopes": [format!("repo:{C}")] }), "invalid_scope"),
        ("api", "parameters", json!({ "parameters": { "decides": C, "place": "x" } }), ""),
        ("api", "parameters", json!({ "parameters": { "decides": "x", "place": C } }), ""),
        ("gitlab", "project", gitlab("project"), "404"),
        ("gitlab", "group", gitlab("group"), "404"),
        ("github", "repositories", github("repositories"), "422"),
        ("github", "repository_ids", github("repository_ids"), "422"),
    ]
}

/// An API that makes keys, and what it was asked last: the place in the path, and the body.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<(String, Value)>>);

impl Api {
    async fn start(&self) -> String {
        let (url, serve) = https::plain().await;
        let make = async |State(Self(last)): State<Self>, Path(place): Path<String>, Json(body): Json<Value>| {
            *last.lock().expect("no test dies in here") = (place, body);
            Json(json!({ "key": "key-0123456789" }))
        };
        let router = Router::new().route("/places/{place}/keys", post(make)).route("/keys/{name}", delete(async || ()));
        tokio::spawn(serve(router.with_state(self.clone())));
        url
    }

    /// Where it stood in the last request: in the field that is not `x`.
    fn said(&self) -> String {
        let (place, body) = self.0.lock().expect("no test dies in here").clone();
        let decides = body["decides"].as_str().expect("a text").to_owned();
        if decides == "x" { place } else { decides }
    }
}

/// What a token that we signed says.
fn payload(answer: &Value) -> Value {
    let token = answer["access_token"].as_str().expect("a token");
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a payload")).expect("base64url");
    serde_json::from_slice(&payload).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_claims_are_carried_or_refused() {
    let github = issuer(Ci::GitHub).await;
    let (role, shop, cache) = (postgres::Role::start().await, mysql::Shop::start().await, redis::Cache::start().await);
    let (broker, mesh, images) =
        (rabbitmq::Broker::start().await, x509::Mesh::start().await, oci_registry::Images::start().await);
    let (host, cluster) = (ssh::Host::<ssh::Ed25519>::start().await, kubernetes::Cluster::start().await);
    let (bao, ledger) = (OpenBao::start().await, Ledger::start(ports::ANY, now).await.expect("it starts"));
    let (google, entra, other) =
        (Google::start(now).await, Entra::start(now).await, AuthorizationServer::start(now).await);
    let (gitlab, hub, aws) = (GitLabApi::start(now).await, GitHubApi::start(now, None).await, Aws::start(now).await);
    let api = Api::default();
    let setup = Setup::new().issuer("github", github.url(), &["1001"]).unlimited().sealing(SEALING);
    let ledger_keys = crate::crash::ledger_backend(&ledger, &setup.secret("ledger", ledger.admin_token().expose()));
    let app_key = setup.secret("app", &hub.install("Iv1.a", 1_000_000));
    let gitlab_token = setup.secret("gitlab", ADMIN_TOKEN);
    let backends = [
        ("postgres", role.backend(&setup)),
        ("mysql", shop.backend(&setup)),
        ("redis", cache.backend(&setup)),
        ("rabbitmq", broker.backend(&setup)),
        ("ssh", host.backend(&setup)),
        ("x509", mesh.backend(&setup)),
        ("oci", images.backend(&setup)),
        ("kubernetes", cluster.backend(&setup)),
        (
            "vault",
            json!({ "vault": { "address": bao.url(), "audience": AUDIENCE, "token_lifetime": "1h", "insecure_http": true } }),
        ),
        ("ledger", ledger_keys),
        ("oidc", json!({ "signed_jwt": { "audiences": ["https://cloud.example"] } })),
        ("aws", json!({ "aws_sts": { "region": "eu-central-1", "endpoint_url": aws.url } })),
        (
            "google",
            json!({ "gcp": {
            "provider": PROVIDER, "projects": ["acme-prod"], "insecure_http": true, "sts_url": google.url, "iam_url": google.url,
        } }),
        ),
        ("entra", json!({ "azure": { "tenant": TENANT, "authority": entra.url, "insecure_http": true } })),
        (
            "exchange",
            json!({ "token_exchange": {
            "token_url": format!("{}/token", other.url), "audience": other.url, "token_lifetime": "10m", "insecure_http": true,
        } }),
        ),
        (
            "client",
            json!({ "oauth2_client_credentials": {
            "token_url": format!("{}/token", other.url), "client": { "id": "with-key" }, "token_lifetime": "10m", "insecure_http": true,
        } }),
        ),
        (
            "api",
            json!({ "http": {
            "base_url": api.start().await, "insecure_http": true, "parameters": { "decides": {}, "place": {} },
            "create": {
                "path": "/places/{{ parameters.place }}/keys", "secret": "/key",
                "body": { "name": "{{ lease.name }}", "decides": "{{ parameters.decides }}" },
            },
            "delete": { "path": "/keys/{{ lease.name }}" },
        } }),
        ),
        ("gitlab", json!({ "gitlab": { "url": gitlab.url, "token": gitlab_token, "insecure_http": true } })),
        (
            "github",
            json!({ "github_app": {
            "api_url": hub.url, "insecure_http": true,
            "apps": [{ "client_id": "Iv1.a", "installation_id": 1, "private_key": app_key }],
        } }),
        ),
    ];
    let mut setup = setup.signing(&["ES256", "RS256"]);
    for (name, mut backend) in backends {
        // A refusal that we caused must not be one that the next value meets.
        backend["limits"] = json!({ "failures": 1_000_000 });
        setup = setup.backend(name, backend);
    }
    for (number, (backend, _, credential, _)) in fields().into_iter().enumerate() {
        let name = format!("f{number}");
        let ttl = if backend == "entra" { "90m" } else { "30m" };
        let grant = json!({
            "grant": name, "owner": "platform@acme.example", "backend": backend, "credential": credential, "ttl": ttl, "max_lifetime": ttl,
            "rules": [{ "name": "any", "issuer": "github", "match": { "repository_owner_id": "1001" } }],
        });
        setup = setup.grant_text(&name, &grant.to_string());
    }
    let form: Vec<(&str, String)> = [host.form(), mesh.form()].concat();
    let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = setup.start().await;
    bao.trust(&server.url).await;
    let bound = json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": [AUDIENCE], "token_policies": ["ci"], "token_ttl": "5m",
        "token_type": "service",
    });
    bao.admin("auth/jwt/role/ci", bound).await;
    google.trust(&server.url);
    for (number, _) in fields().iter().enumerate().filter(|(_, (_, field, ..))| field.starts_with("boundary")) {
        google.bind(&format!("grant:f{number}:bound"), ACCOUNT);
    }
    entra.federate(CLIENT, &server.url, "somebody else", "api://AzureADTokenExchange");
    other.trust(&server.url);
    aws.trust("*");

    let (mut wrong, mut unknown, mut carried, mut compared) = (Vec::new(), Vec::new(), 0, 0);
    for (number, (backend, field, _, absent)) in fields().into_iter().enumerate() {
        for value in hostile() {
            let token = Token::for_audience(server.url.as_str()).claim("repository_id", value.as_str());
            let token = github.mint(&token).expect("the key signs");
            let answer = server.exchange(&format!("f{number}"), &token, &form).await;
            let said = answer.body["error_description"].as_str().unwrap_or_default();
            // What reached the other side, wherever it tells.
            let text = |value: &Value| Some(value.as_str().unwrap_or_default().to_owned());
            let last = |refused: Vec<String>, why: &str| {
                refused.last().and_then(|last| last.strip_prefix(why)).unwrap_or_default().to_owned()
            };
            let found = match (backend, field) {
                _ if ![200, 502].contains(&answer.status) => None,
                ("api", _) => Some(api.said()),
                ("aws", "sub") => text(&aws.claims()["sub"]),
                ("aws", "source_identity") => text(&aws.claims()["https://aws.amazon.com/source_identity"]),
                ("aws", "session_tags") => {
                    text(&aws.claims()["https://aws.amazon.com/tags"]["principal_tags"]["said"][0])
                }
                ("entra", "sub") => {
                    let subject = "invalid_client: AADSTS700213: no federated record for subject ";
                    Some(serde_json::from_str(&last(entra.refused(), subject)).unwrap_or_default())
                }
                ("exchange", "sub") => {
                    let token = answer.body["access_token"].as_str().expect("a token");
                    let read = client().get(format!("{}/read", other.url)).bearer_auth(token).send().await;
                    text(&read.expect("it answers").json::<Value>().await.expect("JSON")["subject"])
                }
                ("exchange" | "client", "scopes") => Some(last(other.refused(), "invalid_scope: ")),
                ("github", field) => Some(hub.body()[field][0].to_string().replace('"', "")),
                ("gitlab", _) => Some(gitlab.named()),
                ("google", "sub") => Some(google.asked("subject")),
                ("google", "service_account") => Some(google.asked("account")),
                ("google", "boundary.0.bucket") => Some(google.asked("bucket")),
                ("google", "boundary.0.prefix") => Some(google.asked("prefix")),
                ("kubernetes", "annotations") => {
                    let of =
                        |secret: &&Value| secret["metadata"]["annotations"]["jobpass/lease"] == answer.body["lease_id"];
                    let secret = cluster.secrets().into_iter().find(|secret| of(&secret)).expect("its Secret");
                    text(&secret["metadata"]["annotations"]["jobpass/run"])
                }
                ("ledger", "parameters") => ledger.keys().last().map(|key| key.note.clone()),
                ("oidc", "claims") => text(&payload(&answer.body)["said"]),
                ("oidc", "sub") => text(&payload(&answer.body)["sub"]),
                _ => None,
            };
            let expected = match (backend, field) {
                (_, "sub") => format!("grant:f{number}:{value}"),
                (_, "scopes") => format!("repo:{value}"),
                ("google", "service_account") => format!("r-{value}@acme-prod.iam.gserviceaccount.com"),
                ("google", "boundary.0.prefix") => format!("projects/_/buckets/releases/objects/{value}/"),
                _ => value.clone(),
            };
            compared += usize::from(found.is_some());
            if found.as_ref().is_some_and(|found| *found != expected) {
                wrong.push(format!("{backend} {field} {value:?}: {found:?} arrived"));
            }
            match answer.status {
                200 => carried += 1,
                400 if said.starts_with(&format!("credential.{field}")) || said.starts_with("subject_token") => {}
                400 if backend == "api" && said.starts_with("create.path: a segment") => {}
                502 if !absent.is_empty() => {
                    let decision = answer.body["decision_id"].as_str().expect("an id").to_owned();
                    unknown.push((backend, field, value, absent, decision));
                }
                status => wrong.push(format!("{backend} {field} {value:?}: {status} {said}")),
            }
        }
    }
    server.verify_audit().await;
    let audit = server.audit();
    for (backend, field, value, absent, decision) in unknown {
        let failed = |line: &&str| line.contains(&decision) && line.contains("\"failed\"");
        let line = audit.lines().find(failed).unwrap_or_default();
        if !line.contains(absent) {
            wrong.push(format!("{backend} {field} {value:?}: {line}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
    assert!(carried > 700 && compared > 500, "{carried}, {compared} of which were compared");

    // Nothing of all that stays, and nothing was broken.
    server.revoke_all().await;
    let systems = async || {
        [role.left().await, shop.left().await, cache.left().await, broker.left().await, cluster.left().await].concat()
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
    while !systems().await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", systems().await);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    println!("{carried} carried, {compared} compared with what arrived");
}
