//! Any other CI or machine that puts a token into `JOBPASS_ID_TOKEN`.

use super::{Source, SourceError, check_given};
use crate::{env::Env, mask::Masking, outbound::Outbound};
use jobpass_protocol::Secret;
use sha2::{Digest as _, Sha256};
use std::path::PathBuf;

struct Variable(Secret);

pub(super) fn detect(env: &Env) -> Option<Box<dyn Source>> {
    env.text("JOBPASS_ID_TOKEN").map(|token| Box::new(Variable(Secret::from(token))) as Box<dyn Source>)
}

impl Source for Variable {
    fn name(&self) -> &'static str {
        "JOBPASS_ID_TOKEN"
    }

    fn job_key(&self) -> String {
        // All that is known of the job is its token, so whoever has the same token is the same job.
        format!("{:x}", Sha256::digest(self.0.expose()))
    }

    fn masking(&self) -> Masking {
        Masking::None
    }

    fn workspace(&self) -> Option<PathBuf> {
        None
    }

    fn gives_fresh_tokens(&self) -> bool {
        false
    }

    fn token(&self, _: &Outbound, audience: &str) -> Result<Secret, SourceError> {
        check_given(self.0.expose(), audience)
    }
}
