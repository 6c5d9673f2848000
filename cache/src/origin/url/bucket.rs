//! Where a bucket is: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://account/container/prefix`.

use std::fmt;

use url::{Host, Url};

use super::super::OriginError;
use super::{CredentialsRef, FORMS, percent_decoded, refuse, unknown_key, write_path, write_query};

/// A bucket and how to get at it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BucketLocation {
    /// Who keeps it.
    pub service: Service,
    /// The bucket's name; Azure calls it a container.
    pub bucket: String,
    /// Keys begin with this; no slash at either end; empty for the whole bucket.
    pub prefix: String,
    /// The base URL (`http` or `https`, no path beyond `/`), if it is not the service's own.
    pub endpoint: Option<String>,
    /// The region, if it must be said (S3).
    pub region: Option<String>,
    /// Where the credentials are found.
    pub credentials: CredentialsRef,
}

/// Who keeps a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// AWS S3, or what is compatible with it.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure {
        /// The storage account.
        account: String,
    },
}

impl BucketLocation {
    /// Of a URL whose scheme is `s3`, `gs` or `az`.
    pub(super) fn parse(url: &Url) -> Result<BucketLocation, OriginError> {
        let first = match url.host() {
            Some(Host::Domain(name)) if url.port().is_none() => name.to_owned(),
            _ => return Err(refuse(url, "it names no bucket", FORMS)),
        };
        match url.scheme() {
            "gs" => below(url, Service::Gcs, first, url.path()),
            "az" => {
                let account = account(url, first)?;
                let path = url.path().trim_start_matches('/');
                let (container, prefix) = path.split_once('/').unwrap_or((path, ""));
                below(
                    url,
                    Service::Azure { account },
                    container.to_owned(),
                    prefix,
                )
            }
            _ => below(url, Service::S3, first, url.path()),
        }
    }
}

fn account(url: &Url, name: String) -> Result<String, OriginError> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if (3..=24).contains(&name.len()) && name.chars().all(valid) {
        return Ok(name);
    }
    Err(refuse(
        url,
        "the storage account's name is not valid",
        "use 3 to 24 characters of a-z 0-9: az://account/container/prefix",
    ))
}

/// A bucket of a service and the prefix that `path` is.
fn below(
    url: &Url,
    service: Service,
    bucket: String,
    path: &str,
) -> Result<BucketLocation, OriginError> {
    let in_bucket_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(in_bucket_name) {
        return Err(refuse(
            url,
            "the bucket's name is not valid",
            "use 3 to 63 characters of a-z 0-9 . - _",
        ));
    }
    let prefix = percent_decoded(path)
        .ok_or_else(|| refuse(url, "the prefix is not UTF-8", "percent-encode it as UTF-8"))?;
    let mut location = BucketLocation {
        service,
        bucket,
        // Written as %2F or not, a slash at an end is no part of it.
        prefix: prefix.trim_matches('/').to_owned(),
        endpoint: None,
        region: None,
        credentials: CredentialsRef::default(),
    };
    for (key, value) in url.query_pairs() {
        match key.as_ref() {
            "endpoint" => location.endpoint = Some(endpoint(url, &value)?),
            "region" if location.service == Service::S3 => {
                location.region = Some(region(url, &value)?);
            }
            "credentials" => location.credentials = CredentialsRef::parse(url, &value)?,
            _ => {
                let remedy = match location.service {
                    Service::S3 => "the keys are endpoint, region and credentials",
                    Service::Gcs | Service::Azure { .. } => "the keys are endpoint and credentials",
                };
                return Err(unknown_key(url, &key, remedy));
            }
        }
    }
    Ok(location)
}

fn region(url: &Url, value: &str) -> Result<String, OriginError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if value.is_empty() || value.len() > 64 || !value.chars().all(valid) {
        return Err(refuse(
            url,
            "the region is not valid",
            "write one as eu-west-1",
        ));
    }
    Ok(value.to_owned())
}

fn endpoint(url: &Url, value: &str) -> Result<String, OriginError> {
    const REMEDY: &str = "write endpoint=http://host:port or https://host";
    let endpoint = Url::parse(value).map_err(|e| refuse(url, format!("endpoint: {e}"), REMEDY))?;
    let plain = matches!(endpoint.scheme(), "http" | "https")
        && endpoint.has_host()
        && endpoint.username().is_empty()
        && endpoint.password().is_none()
        && endpoint.path() == "/"
        && endpoint.query().is_none()
        && endpoint.fragment().is_none();
    if !plain {
        return Err(refuse(
            url,
            "the endpoint has more than a scheme, host and port",
            REMEDY,
        ));
    }
    Ok(endpoint.as_str().trim_end_matches('/').to_owned())
}

impl fmt::Display for BucketLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Service::S3 => write!(f, "s3://{}/", self.bucket)?,
            Service::Gcs => write!(f, "gs://{}/", self.bucket)?,
            Service::Azure { account } => write!(f, "az://{account}/{}/", self.bucket)?,
        }
        write_path(f, &self.prefix)?;
        let credentials = self.credentials.shown();
        write_query(
            f,
            &[
                ("endpoint", self.endpoint.as_deref()),
                ("region", self.region.as_deref()),
                ("credentials", credentials.as_deref()),
            ],
        )
    }
}
