//! What rotates a secret when a lease ends: a command or an HTTP request. It may be called again for the same
//! lease, and never learns the secret from us.

use crate::{
    backends::{
        http::{HeaderFile, Headers},
        registry::BuildContext,
        upstream::Upstream,
    },
    config::Env,
    leases::Lease,
};
use http::{HeaderValue, Request, header};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf, process::Stdio, time::Duration};
use tokio::process::Command;
use url::Url;

/// What rotates the secret.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HookFile {
    /// A program and its arguments, run as the server's user with `PATH`, `JOBPASS_LEASE` and `JOBPASS_GRANT` and
    /// nothing else in its environment. Exit status 0 says that the secret was rotated.
    Command(Vec<String>),
    /// A `POST` of `{"lease": …, "grant": …}`. A status of 2xx says that the secret was rotated.
    Http(HttpFile),
}

/// The request of a hook.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpFile {
    /// Where to.
    pub url: String,
    /// Its headers: how the server proves who it is.
    #[serde(default)]
    pub headers: BTreeMap<String, HeaderFile>,
    /// Private networks in which it may lie (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// Its own certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// A hook that can be called.
pub(super) struct Hook {
    does: Does,
    env: Env,
}

enum Does {
    Command { program: PathBuf, arguments: Vec<String> },
    Http { url: Url, headers: Headers, upstream: Box<Upstream> },
}

impl Hook {
    pub(super) fn build(file: HookFile, deadline: Duration, context: &BuildContext) -> Result<Self, String> {
        let does = match file {
            HookFile::Command(words) => {
                let (program, arguments) = words.split_first().ok_or("command: it is empty")?;
                if !program.starts_with('/') {
                    return Err("command: give the program's whole path, such as /usr/local/bin/rotate-erp".to_owned());
                }
                Does::Command { program: program.into(), arguments: arguments.to_vec() }
            }
            HookFile::Http(file) => Does::Http {
                url: Url::parse(&file.url).map_err(|error| format!("http.url: {error}"))?,
                headers: Headers::parse(file.headers, context).map_err(|why| format!("http.{why}"))?,
                upstream: Box::new(Upstream::new(
                    "the hook",
                    context.outbound(file.allow_networks, file.ca_file, file.insecure_http, deadline),
                    context,
                )),
            },
        };
        Ok(Self { does, env: context.env.clone() })
    }

    pub(super) fn preflight(&self) -> Result<(), String> {
        match &self.does {
            Does::Command { program, .. } if !program.is_file() => {
                Err(format!("rotate.command: there is no program {}", program.display()))
            }
            Does::Command { .. } => Ok(()),
            Does::Http { headers, upstream, .. } => {
                upstream.client().map_err(|error| format!("rotate.http: {error}"))?;
                headers.read(&self.env).map(drop).map_err(|why| format!("rotate.http.{why}"))
            }
        }
    }

    /// Calls it for one lease; whoever drops this ends the program.
    pub(super) async fn call(&self, lease: &Lease) -> Result<(), String> {
        let (id, grant) = (lease.id().to_string(), lease.subject().grant.as_str());
        match &self.does {
            Does::Command { program, arguments } => {
                let mut command = Command::new(program);
                command.args(arguments).env_clear().envs(self.env.var("PATH").map(|path| ("PATH", path)));
                command.env("JOBPASS_LEASE", id).env("JOBPASS_GRANT", grant);
                // What it says is its own: it may speak of the secret.
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
                match command.status().await {
                    Ok(status) if status.success() => Ok(()),
                    Ok(status) => Err(format!("the hook {} ended with {status}", program.display())),
                    Err(error) => Err(format!("the hook {} cannot be run: {error}", program.display())),
                }
            }
            Does::Http { url, headers, upstream } => {
                let body = json!({ "lease": id, "grant": grant }).to_string().into_bytes();
                let mut request = Request::post(url.as_str()).body(body).map_err(|error| error.to_string())?;
                request.headers_mut().extend(headers.read(&self.env)?);
                request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                let answer = upstream.send(request).await.map_err(|error| error.to_string())?;
                match answer.status {
                    status if status.is_success() => Ok(()),
                    status => Err(format!("the hook answered {}", status.as_u16())),
                }
            }
        }
    }
}
