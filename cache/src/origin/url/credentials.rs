//! Where an origin's credentials are, as its URL says it.

use std::path::PathBuf;

use url::Url;

use super::super::OriginError;
use super::refuse;

/// Where credentials are found. Never the credentials themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum CredentialsRef {
    /// `credentials=env`, the default: the standard variables of the agent's environment
    /// (`AWS_ACCESS_KEY_ID` and so on). There are none for web servers, which are asked without.
    #[default]
    Environment,
    /// `credentials=none`: requests are not signed.
    Anonymous,
    /// `credentials=/absolute/path`: a file on the node, in the service's own format.
    File(PathBuf),
    /// `credentials=secret:NAMESPACE/NAME`: a Secret of the Kubernetes API.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl CredentialsRef {
    /// Of the value of a URL's `credentials`.
    pub(super) fn parse(url: &Url, value: &str) -> Result<CredentialsRef, OriginError> {
        match value {
            "env" => Ok(CredentialsRef::Environment),
            "none" => Ok(CredentialsRef::Anonymous),
            path if path.starts_with('/') && !path.contains('\0') => {
                Ok(CredentialsRef::File(PathBuf::from(path)))
            }
            other => secret(other).ok_or_else(|| {
                refuse(
                    url,
                    "credentials is not a reference",
                    "write credentials=env, =none, =/path/of/a/file or =secret:namespace/name",
                )
            }),
        }
    }

    /// As the value of a URL's `credentials`; `None` for the default.
    pub(super) fn shown(&self) -> Option<String> {
        match self {
            CredentialsRef::Environment => None,
            CredentialsRef::Anonymous => Some("none".to_owned()),
            CredentialsRef::File(path) => Some(path.to_string_lossy().into_owned()),
            CredentialsRef::Secret { namespace, name } => {
                Some(format!("secret:{namespace}/{name}"))
            }
        }
    }
}

fn secret(value: &str) -> Option<CredentialsRef> {
    let (namespace, name) = value.strip_prefix("secret:")?.split_once('/')?;
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let is_name = |text: &str| {
        (1..=253).contains(&text.len()) && text.chars().all(valid) && text.starts_with(|c| c != '.')
    };
    (is_name(namespace) && is_name(name)).then(|| CredentialsRef::Secret {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}
