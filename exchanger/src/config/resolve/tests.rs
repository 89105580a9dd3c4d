use super::*;

const CONFIG: &str = "\
public_url: https://jobpass.example
listen: 127.0.0.1:8420
state_dir: state
issuers:
  github: { algorithms: [RS256] }
backends:
  id: { signed_jwt: { audiences: [https://cloud.example] } }
policies: [\".\"]
limits: { idle: 5m }
";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("jobpass.yaml", text, Path::new("."), &Env::default())
        .map_err(|problems| Problems(problems).to_string())
}

#[test]
fn the_rest_has_defaults() {
    let config = parse(CONFIG).expect("a config");
    assert_eq!((config.bounds.connections.get(), config.bounds.idle), (4096, Duration::from_secs(300)));
    assert_eq!((config.drain, config.exchanges_per_minute), (Duration::from_secs(30), 600));
}

#[test]
fn every_problem_has_a_place_an_excerpt_and_a_cure() {
    for (was, is, place, message) in [
        ("public_url: ", "publicurl: ", "1:1", "unknown field `publicurl`"),
        ("state_dir: state", "state_dir: state\nstate_dir: more", "4:1", "`state_dir` is written twice"),
        ("state_dir: state", "state_dir: [", "3:12", "a text belongs here"),
        ("state_dir: state\n", "", "8:1", "missing field `state_dir`"),
        ("https://jobpass.example", "http://jobpass.example", "1:13", "exact https URL"),
        ("https://jobpass.example", "https://jobpass.example/", "1:13", "exact https URL"),
        ("https://jobpass.example", "https://JOBPASS.example", "1:13", "exact https URL"),
        ("https://jobpass.example", "https://me:pw@jobpass.example", "1:13", "exact https URL"),
        ("127.0.0.1:8420", "0.0.0.0:8420", "2:9", "plain http would be served beyond loopback"),
        ("127.0.0.1:8420", "localhost", "2:9", "socket address"),
        ("github:", "gihub:", "5:10", "no issuer profile `gihub`"),
        ("github: { ", "g: { profile: gitlub, ", "5:17", "no issuer profile `gitlub`"),
        ("RS256", "ES256", "5:25", "does not sign with `ES256`"),
        ("RS256", "HS256", "5:25", "does not sign with `HS256`"),
        ("RS256]", "RS256], url: https://gitlab.example", "5:39", "not a URL that issuers of profile `github` have"),
        ("RS256]", "RS256], jwks_file: keys, ca_file: ca.pem", "5:11", "`ca_file` has no use beside `jwks_file`"),
        ("RS256]", "RS256], jwks_file: keys, jwks_uri: https://k", "5:11", "exclude each other"),
        ("RS256]", "RS256], jwks_uri: keys", "5:44", "`jwks_uri` is not a URL"),
        ("RS256]", "RS256], jwks_uri: http://github.example/jwks", "5:44", "has to be https"),
        ("RS256]", "RS256], jwks_uri: http://127.0.0.1/jwks", "5:44", "has to be https"),
        ("RS256]", "RS256], url: http://127.0.0.1:80", "5:39", "not a URL that tokens can be of"),
        ("[RS256]", "[]", "5:25", "no algorithm is accepted"),
        (
            "github: { algorithms: [RS256]",
            "gitlab: { url: https://jobpass.example",
            "5:18",
            "jobpass cannot be its own subject issuer",
        ),
        ("backends:", "  more: { profile: github }\nbackends:", "6:9", "issuers `github` and `more` have the same URL"),
        (
            "github: { algorithms: [RS256]",
            "jenkins: { url: https://ci.example/oidc, tenants: [a]",
            "5:12",
            "`tenants` cannot be checked",
        ),
        ("RS256]", "RS256], audience: me", "5:34", "unknown field `audience`"),
        ("signed_jwt", "signed_jot", "7:9", "unknown variant `signed_jot`"),
        ("audiences", "audience", "7:23", "unknown field `audience`"),
        ("[\".\"]", "[\"nowhere\"]", "8:12", "nowhere is not a directory"),
        ("idle: 5m", "idle: soon", "9:17", "not a duration"),
        ("idle: 5m", "connections: 0", "9:11", "nonzero"),
        ("limits:", "signing: { propagation: 1s }\nlimits:", "9:25", "would not know a new key yet"),
    ] {
        assert!(CONFIG.contains(was), "{was}");
        let told = parse(&CONFIG.replacen(was, is, 1)).err().unwrap_or_default();
        for expected in [message, &format!("\n  --> jobpass.yaml:{place}\n"), "^\n  = help: "] {
            assert!(told.contains(expected), "{is}: {expected}\n{told}");
        }
    }
}

#[test]
fn a_secret_in_the_config_is_not_shown() {
    let text = "public_url: https://jobpass.example\nbackends:\n  db:\n    postgres:\n      host: db\n      database: app\n      \
                user: jobpass\n      password: \"hunter2\"\n";
    let problems = Config::parse("jobpass.yaml", text, Path::new("."), &Env::default()).err().unwrap_or_default();
    let told = Problems(problems).to_string();
    assert!(told.contains("jobpass.yaml:8:") && told.contains("by reference"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}
