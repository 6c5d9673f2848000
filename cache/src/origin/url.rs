//! An origin's address, parsed once.
//!
//! `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://account/container/prefix` or
//! `https://host/folder`, with `?endpoint=…&region=…&credentials=…&index=…` where those make sense. Secrets
//! are refused wherever they could be put: a URL is shown to people, logged and kept in the registry.

mod bucket;
mod credentials;
mod web;

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::{Host, Url};

use super::OriginError;

pub use bucket::{BucketLocation, Service};
pub use credentials::CredentialsRef;
pub use web::WebLocation;

/// The longest URL accepted, in bytes.
const MAX_URL_BYTES: usize = 4096;

/// Where a dataset's bytes come from. Made by parsing only, so what it holds is valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OriginUrl {
    /// A directory, local or on a mounted file system: an absolute path without `..`.
    Directory(PathBuf),
    /// A bucket of an object store, or what lies below a prefix of it.
    Bucket(BucketLocation),
    /// A folder of a web server.
    Web(WebLocation),
}

impl OriginUrl {
    /// Where its credentials are; `None` if it is of a kind that takes none.
    pub fn credentials(&self) -> Option<&CredentialsRef> {
        match self {
            OriginUrl::Directory(_) => None,
            OriginUrl::Bucket(location) => Some(&location.credentials),
            OriginUrl::Web(location) => Some(&location.credentials),
        }
    }

    /// The same origin with its credentials elsewhere; a kind that takes none stays as it is.
    pub fn with_credentials(mut self, credentials: CredentialsRef) -> OriginUrl {
        match &mut self {
            OriginUrl::Directory(_) => {}
            OriginUrl::Bucket(location) => location.credentials = credentials,
            OriginUrl::Web(location) => location.credentials = credentials,
        }
        self
    }

    /// The same origin for whoever may read it without: what tells it from others, not how it is read.
    pub fn without_credentials(&self) -> OriginUrl {
        self.clone().with_credentials(CredentialsRef::default())
    }

    /// The host that is asked, if the URL names one.
    pub fn host(&self) -> Option<Host> {
        let url = match self {
            OriginUrl::Directory(_) => return None,
            OriginUrl::Bucket(location) => location.endpoint.as_deref()?,
            OriginUrl::Web(location) => &location.server,
        };
        Some(Url::parse(url).ok()?.host()?.to_owned())
    }
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
            "s3" | "gs" | "az" => BucketLocation::parse(&url).map(OriginUrl::Bucket),
            "http" | "https" => WebLocation::parse(&url).map(OriginUrl::Web),
            _ => Err(refuse(&url, "the scheme is not one we read", FORMS)),
        }
    }
}

const FORMS: &str = "write file:///path, s3://bucket/prefix?endpoint=…&region=…&credentials=…, \
                     gs://bucket/prefix, az://account/container/prefix or https://host/folder?index=…";
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

/// The key alone of a part of a query that we do not know: its value may be a secret.
fn unknown_key(url: &Url, key: &str, remedy: &'static str) -> OriginError {
    let key: String = key.chars().take(40).collect();
    refuse(url, format!("it has a query key {key:?}"), remedy)
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

/// Writes a path as a URL has it.
fn write_path(f: &mut fmt::Formatter<'_>, path: &str) -> fmt::Result {
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                write!(f, "{}", byte as char)?;
            }
            other => write!(f, "%{other:02X}")?,
        }
    }
    Ok(())
}

/// Writes the pairs that have a value as a query.
fn write_query(f: &mut fmt::Formatter<'_>, pairs: &[(&str, Option<&str>)]) -> fmt::Result {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (key, value) in pairs {
        if let Some(value) = value {
            query.append_pair(key, value);
        }
    }
    match query.finish().as_str() {
        "" => Ok(()),
        query => write!(f, "?{query}"),
    }
}

impl fmt::Display for OriginUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OriginUrl::Directory(path) => match Url::from_file_path(path) {
                Ok(url) => f.write_str(url.as_str()),
                Err(()) => write!(f, "file://{}", path.display()),
            },
            OriginUrl::Bucket(location) => location.fmt(f),
            OriginUrl::Web(location) => location.fmt(f),
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
        let OriginUrl::Bucket(location) = &url else {
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
    fn every_kind_of_origin_shows_itself_as_it_is_written() {
        for text in [
            "gs://sets/train?credentials=%2Fetc%2Fgcs.json",
            "az://account1/sets/train/v1?endpoint=http%3A%2F%2F10.0.0.1%3A10000",
            "https://host:8443/data/cats?index=files.txt&credentials=secret%3Ateam-a%2Fweb",
            "http://host",
        ] {
            let url: OriginUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), text);
        }
        let url: OriginUrl = "az://account1/sets/a/b/".parse().expect("valid");
        let OriginUrl::Bucket(location) = url else {
            panic!("no bucket")
        };
        assert_eq!(
            (location.bucket.as_str(), location.prefix.as_str()),
            ("sets", "a/b")
        );
        for bad in [
            "gs://sets?region=eu",
            "az://account1",
            "az://AC/sets",
            "https://host/x?index=../secret",
            "https://host/x?index=",
            "https://host/x?index=a%09b",
            "https://host/a//b",
            "https://host/a%00b",
            "https://host/x?region=eu",
            "https://user:hunter2@host/x",
        ] {
            assert!(!refused(bad).contains("hunter2"), "{bad}");
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
            "gs://sets/x?key=hunter2",
            "az://account1/sets?sig=hunter2",
            "https://host/x?token=hunter2",
            "https://me:hunter2@host/x",
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
        fn arbitrary_text_never_panics_and_what_parses_shows_itself(text in "(s3://|gs://|az://|https?://|file:///|/)?\\PC{0,40}") {
            if let Ok(url) = text.parse::<OriginUrl>() {
                prop_assert_eq!(url.to_string().parse::<OriginUrl>().expect("shown URLs parse"), url);
            }
        }
    }
}
