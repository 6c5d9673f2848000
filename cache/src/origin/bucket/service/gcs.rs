//! Google Cloud Storage.

use std::sync::Arc;

use object_store::StaticCredentialProvider;
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};

use super::super::super::{BucketLocation, CredentialsRef, OriginError, SecretValues, secrets};

/// The key of a Secret, and the variable, that has a service account's key as JSON.
const KEY: &str = "GOOGLE_SERVICE_ACCOUNT_KEY";
/// Variables that name a file with one.
const FILES: [&str; 2] = ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"];
/// Always said: a service account's key can name another, and the URL alone says who is asked.
const ENDPOINT: &str = "https://storage.googleapis.com";

/// The builder for a bucket, with its credentials. Without any in the environment, the library asks the
/// instance's metadata service.
pub(super) fn builder(
    location: &BucketLocation,
    url: &str,
    secret: Option<&SecretValues>,
) -> Result<GoogleCloudStorageBuilder, OriginError> {
    let builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&location.bucket)
        .with_base_url(location.endpoint.as_deref().unwrap_or(ENDPOINT));
    let variable = |name: &str| std::env::var(name).ok().filter(|it| !it.is_empty());
    Ok(match &location.credentials {
        // With some of its own the library looks for no others on the node.
        CredentialsRef::Anonymous => builder
            .with_credentials(Arc::new(StaticCredentialProvider::new(GcpCredential {
                bearer: String::new(),
            })))
            .with_skip_signature(true),
        CredentialsRef::File(path) => {
            builder.with_service_account_key(secrets::read_file(path, url)?)
        }
        CredentialsRef::Secret { .. } => {
            let key = secret
                .and_then(|secret| secret.get(KEY))
                .ok_or_else(|| secrets::incomplete(url, "service account's key", KEY))?;
            builder.with_service_account_key(key)
        }
        CredentialsRef::Environment => {
            let file = || FILES.iter().find_map(|name| variable(name));
            match (variable(KEY), file()) {
                (Some(key), _) => builder.with_service_account_key(key),
                (None, Some(file)) => builder.with_application_credentials(file),
                (None, None) => builder,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OriginUrl;
    use object_store::gcp::GoogleConfigKey;

    #[test]
    fn google_is_asked_unless_the_url_says_otherwise() {
        for (text, asked) in [
            ("gs://sets/x?credentials=none", ENDPOINT),
            (
                "gs://sets/x?credentials=none&endpoint=http://10.0.0.1:9000",
                "http://10.0.0.1:9000",
            ),
        ] {
            let OriginUrl::Bucket(location) = text.parse().expect("a URL") else {
                panic!("no bucket: {text}")
            };
            let builder = builder(&location, text, None).expect("a builder");
            let said = builder.get_config_value(&GoogleConfigKey::BaseUrl);
            assert_eq!(said.as_deref(), Some(asked));
        }
    }
}
