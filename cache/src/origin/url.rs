//! An origin's address, parsed once.
//!
//! `file:///path`, or `s3://bucket/prefix?endpoint=…&region=…&credentials=…`. Secrets are refused
//! wherever they could be put: a URL is shown to people, logged and kept in the registry.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::{Host, Url};

use super::OriginError;

/// The longest URL accepted, in bytes.
const MAX_URL_BYTES: usize = 4096;

/// Where a dataset's bytes come from. Made by parsing only, so what it holds is valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OriginUrl {
    /// A directory, local or on a mounted file system: an absolute path without `..`.
    Directory(PathBuf),
    /// A bucket, or what lies below a prefix of it.
    S3(S3Location),
}

/// An S3-compatible bucket and how to get at it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct S3Location {
    /// The bucket's name.
    pub bucket: String,
    /// Keys begin with this; no slash at either end; empty for the whole bucket.
    pub prefix: String,
    /// The service's base URL (`http` or `https`, no path beyond `/`), if it is not AWS.
    pub endpoint: Option<String>,
    /// The region, if it must be said.
    pub region: Option<String>,
    /// Where the credentials are found.
    pub credentials: CredentialsRef,
}

/// Where credentials are found. Never the credentials themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum CredentialsRef {
    /// `credentials=env`, the default: the standard variables of the agent's environment
    /// (`AWS_ACCESS_KEY_ID` and so on).
    #[default]
    Environment,
    /// `credentials=none`: requests are not signed.
    Anonymous,
    /// `credentials=/absolute/path`: a file on the node, in the format of `~/.aws/credentials`.
    File(PathBuf),
}

impl FromStr for OriginUrl {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<OriginUrl, OriginError> {
        if text.len() > MAX_URL_BYTES {
            return Err(OriginError::Url {
                url: text.chars().take(60).chain("…".chars()).collect(),
                why: format!("it has {} bytes", text.len()),
                remedy: "an origin URL has at most 4096",
            });
        }
        if let Some(path) = text.strip_prefix('/') {
            return directory(&format!("/{path}"), text);
        }
        let url = Url::parse(text).map_err(|e| OriginError::Url {
            // A text that is no URL cannot be searched for a password: show its scheme at most.
            url: text
                .split_once(':')
                .map_or("…", |(scheme, _)| scheme)
                .chars()
                .take(16)
                .collect(),
            why: e.to_string(),
            remedy: FORMS,
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse(&url, "it holds a user name or password", REFER));
        }
        if url.fragment().is_some() {
            return Err(refuse(&url, "it has a #fragment", FORMS));
        }
        match url.scheme() {
            "file" => {
                if url.query().is_some() {
                    return Err(refuse(
                        &url,
                        "it has a ?query",
                        "write file:///absolute/path",
                    ));
                }
                let path = url.to_file_path().map_err(|()| {
                    refuse(&url, "it names another host", "write file:///absolute/path")
                })?;
                let path = path.to_str().ok_or_else(|| {
                    refuse(
                        &url,
                        "the path is not UTF-8",
                        "bind-mount it under an UTF-8 name",
                    )
                })?;
                directory(path, text)
            }
            "s3" => s3(&url).map(OriginUrl::S3),
            _ => Err(refuse(&url, "the scheme is not one we read", FORMS)),
        }
    }
}

const FORMS: &str = "write file:///path or s3://bucket/prefix?endpoint=…&region=…&credentials=…";
const REFER: &str = "refer to credentials by credentials=env or credentials=/path/of/a/file";

/// The error for a URL, shown without anything that could be a secret.
fn refuse(url: &Url, why: impl Into<String>, remedy: &'static str) -> OriginError {
    let host = url.host_str().unwrap_or("");
    let shown = format!("{}://{host}{}", url.scheme(), url.path());
    OriginError::Url {
        url: shown,
        why: why.into(),
        remedy,
    }
}

fn directory(path: &str, text: &str) -> Result<OriginUrl, OriginError> {
    let path = Path::new(path);
    let dotted = path
        .components()
        .any(|part| matches!(part, Component::ParentDir));
    if dotted || !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(OriginError::Url {
            url: text.to_owned(),
            why: "the path is not absolute, or has '..' or a zero byte in it".into(),
            remedy: "write file:///absolute/path",
        });
    }
    Ok(OriginUrl::Directory(path.components().collect()))
}

fn s3(url: &Url) -> Result<S3Location, OriginError> {
    let bucket = match url.host() {
        Some(Host::Domain(bucket)) if url.port().is_none() => bucket.to_owned(),
        _ => return Err(refuse(url, "it names no bucket", FORMS)),
    };
    let in_bucket_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(in_bucket_name) {
        return Err(refuse(
            url,
            "the bucket's name is not valid",
            "use 3 to 63 characters of a-z 0-9 . - _",
        ));
    }
    let prefix = percent_decoded(url.path())
        .ok_or_else(|| refuse(url, "the prefix is not UTF-8", "percent-encode it as UTF-8"))?;
    // Written as %2F or not, a slash at an end is no part of it.
    let prefix = prefix.trim_matches('/').to_owned();
    let mut location = S3Location {
        bucket,
        prefix,
        endpoint: None,
        region: None,
        credentials: CredentialsRef::default(),
    };
    for (key, value) in url.query_pairs() {
        match key.as_ref() {
            "endpoint" => location.endpoint = Some(endpoint(url, &value)?),
            "region" => {
                let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
                if value.is_empty() || value.len() > 64 || !value.chars().all(valid) {
                    return Err(refuse(
                        url,
                        "the region is not valid",
                        "write one as eu-west-1",
                    ));
                }
                location.region = Some(value.into_owned());
            }
            "credentials" => location.credentials = credentials(url, &value)?,
            _ => {
                // The key alone: its value may be a secret under a name we don't know.
                let key: String = key.chars().take(40).collect();
                let why = format!("it has a query key {key:?}");
                return Err(refuse(
                    url,
                    why,
                    "the keys are endpoint, region and credentials",
                ));
            }
        }
    }
    Ok(location)
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

fn credentials(url: &Url, value: &str) -> Result<CredentialsRef, OriginError> {
    match value {
        "env" => Ok(CredentialsRef::Environment),
        "none" => Ok(CredentialsRef::Anonymous),
        path if path.starts_with('/') && !path.contains('\0') => {
            Ok(CredentialsRef::File(PathBuf::from(path)))
        }
        _ => Err(refuse(
            url,
            "credentials is not a reference",
            "write credentials=env, =none or =/path/of/a/file",
        )),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|prefix| !prefix.contains('\0'))
}

impl fmt::Display for OriginUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OriginUrl::Directory(path) => match Url::from_file_path(path) {
                Ok(url) => f.write_str(url.as_str()),
                Err(()) => write!(f, "file://{}", path.display()),
            },
            OriginUrl::S3(location) => location.fmt(f),
        }
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/", self.bucket)?;
        for byte in self.prefix.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                    write!(f, "{}", byte as char)?;
                }
                other => write!(f, "%{other:02X}")?,
            }
        }
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        if let Some(endpoint) = &self.endpoint {
            query.append_pair("endpoint", endpoint);
        }
        if let Some(region) = &self.region {
            query.append_pair("region", region);
        }
        match &self.credentials {
            CredentialsRef::Environment => {}
            CredentialsRef::Anonymous => {
                query.append_pair("credentials", "none");
            }
            CredentialsRef::File(path) => {
                query.append_pair("credentials", &path.to_string_lossy());
            }
        }
        let query = query.finish();
        if query.is_empty() {
            Ok(())
        } else {
            write!(f, "?{query}")
        }
    }
}

impl Serialize for OriginUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OriginUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OriginUrl, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> String {
        text.parse::<OriginUrl>().expect_err(text).to_string()
    }

    #[test]
    fn a_plain_path_and_a_file_url_mean_the_same() {
        let url: OriginUrl = "file:///data/a%20b/".parse().expect("valid");
        assert_eq!(url, OriginUrl::Directory("/data/a b".into()));
        assert_eq!("/data/a b".parse::<OriginUrl>().expect("valid"), url);
        assert_eq!(url.to_string(), "file:///data/a%20b");
    }

    #[test]
    fn an_s3_url_says_bucket_prefix_endpoint_region_and_where_credentials_are() {
        let text = "s3://sets/train/v%201/?endpoint=http://10.0.0.1:9000&region=eu-west-1&credentials=/etc/s3";
        let url: OriginUrl = text.parse().expect("valid");
        let OriginUrl::S3(location) = &url else {
            panic!("not S3: {url}")
        };
        assert_eq!(
            (location.bucket.as_str(), location.prefix.as_str()),
            ("sets", "train/v 1")
        );
        assert_eq!(location.endpoint.as_deref(), Some("http://10.0.0.1:9000"));
        assert_eq!(location.region.as_deref(), Some("eu-west-1"));
        assert_eq!(location.credentials, CredentialsRef::File("/etc/s3".into()));
        assert_eq!(url.to_string().parse::<OriginUrl>().expect("valid"), url);
    }

    #[test]
    fn a_slash_at_the_end_of_a_prefix_is_no_part_of_it_however_it_is_written() {
        for text in ["s3://sets/a", "s3://sets//a//", "s3://sets/%2Fa%2F%2f"] {
            let url: OriginUrl = text.parse().expect("valid");
            assert_eq!(url.to_string(), "s3://sets/a", "{text}");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for text in [
            "s3://AKIA:hunter2@sets/x",
            "s3://sets/x?secret_access_key=hunter2",
            "s3://sets/x?credentials=hunter2",
            "s3://sets/x?endpoint=http://a:hunter2@host",
            "s3//AKIA:hunter2@sets",
        ] {
            let error = refused(text);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_is_not_an_origin_is_refused_with_the_remedy() {
        for text in [
            "",
            "data",
            "ftp://host/x",
            "file://host/x",
            "/data/../etc",
            "s3://",
            "s3://b/x",
        ] {
            assert!(
                refused(text).contains("write") || refused(text).contains("use 3"),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics_and_what_parses_shows_itself(text in "(s3://|file:///|/)?\\PC{0,40}") {
            if let Ok(url) = text.parse::<OriginUrl>() {
                prop_assert_eq!(url.to_string().parse::<OriginUrl>().expect("shown URLs parse"), url);
            }
        }
    }
}
