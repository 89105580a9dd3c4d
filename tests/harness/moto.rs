//! A real moto: AWS's request and answer shapes. It checks next to nothing, so tests put a strict
//! front before it.

use crate::{
    http, ports,
    program::{self, Program},
};

/// A running moto server; ended on drop.
pub struct Moto {
    /// Its address, which stands for every AWS endpoint.
    pub url: String,
    _program: Program,
}

impl Moto {
    /// Starts it with no state: about three seconds.
    pub async fn start() -> Self {
        let port = ports::free().to_string();
        let url = format!("http://127.0.0.1:{port}");
        let mut command = program::installed("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &port]);
        let answers = async || http::client().get(format!("{url}/moto-api/")).send().await.is_ok();
        let program = Program::start(command).ready(answers).await;
        Self { url, _program: program }
    }
}
