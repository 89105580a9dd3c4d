//! The server's own AWS identity, found where AWS's tools find theirs, and requests signed with it (AWS Signature
//! Version 4). For the few requests that no SDK of ours makes.

use super::{MintError, registry::BuildContext};
use crate::clock::Clock;
use aws_sdk_sts::config::{BehaviorVersion, ProvideCredentials as _, Region, SharedCredentialsProvider};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use http::Request;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};
use tokio::sync::OnceCell;

/// Signs requests to one service in one region.
pub(super) struct AwsIdentity {
    service: &'static str,
    region: String,
    clock: Arc<dyn Clock>,
    /// Made when it is first needed: finding it may ask the machine's metadata.
    provider: OnceCell<Option<SharedCredentialsProvider>>,
}

impl AwsIdentity {
    pub(super) fn new(service: &'static str, region: &str, context: &BuildContext) -> Self {
        let clock = Arc::clone(&context.clock);
        Self { service, region: region.to_owned(), clock, provider: OnceCell::new() }
    }

    /// Signs a request.
    ///
    /// # Errors
    /// When the server has no identity.
    pub(super) async fn sign(&self, request: &mut Request<Vec<u8>>) -> Result<(), MintError> {
        let failed = |why: &dyn fmt::Display| MintError::Unavailable(format!("the server's own AWS identity: {why}"));
        let provider = self.provider.get_or_init(|| async {
            let loader = aws_config::defaults(BehaviorVersion::latest()).region(Region::new(self.region.clone()));
            loader.load().await.credentials_provider()
        });
        let provider = provider.await.as_ref().ok_or_else(|| failed(&"there is none"))?;
        let identity = provider.provide_credentials().await.map_err(|error| failed(&error))?.into();
        let millis = u64::try_from(self.clock.now().millis()).unwrap_or(0);
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(self.service)
            .time(UNIX_EPOCH + Duration::from_millis(millis))
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| failed(&error))?
            .into();
        let url = request.uri().to_string();
        let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let body = SignableBody::Bytes(request.body());
        let signable = SignableRequest::new(request.method().as_str(), url, headers, body);
        let signed = signable.and_then(|signable| sign(signable, &parameters));
        let (instructions, _) = signed.map_err(|error| failed(&error))?.into_parts();
        instructions.apply_to_request_http1x(request);
        Ok(())
    }
}
