//! Credentials that are kept elsewhere, as in the Secrets of Kubernetes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures::future::BoxFuture;

use super::OriginError;

/// Gives secrets by their names.
pub trait Secrets: Send + Sync {
    /// The secret's values as they are now, or why they can't be had.
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<SecretValues, String>>;
}

/// What a secret holds: texts by their keys. Shown by its keys alone.
#[derive(Clone, Default)]
pub struct SecretValues(BTreeMap<String, String>);

impl SecretValues {
    /// A secret of these values.
    pub fn new(values: BTreeMap<String, String>) -> SecretValues {
        SecretValues(values)
    }

    /// The value of a key, such as `AWS_ACCESS_KEY_ID`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Asks for a secret; `secrets` are where they are kept, if this node has such a place.
pub(super) async fn look_up(
    secrets: Option<&dyn Secrets>,
    origin: &str,
    namespace: &str,
    name: &str,
) -> Result<SecretValues, OriginError> {
    let denied =
        |why: String, remedy| denied(origin, format!("secret {namespace}/{name}: {why}"), remedy);
    let Some(secrets) = secrets else {
        let why = "this node is not in a Kubernetes cluster".to_owned();
        return Err(denied(
            why,
            "start the node with --kubernetes, or name a file",
        ));
    };
    secrets.secret(namespace, name).await.map_err(|why| {
        denied(
            why,
            "make the Secret in the dataset's namespace, and let the nodes' service account get it",
        )
    })
}

/// Far more than any file of credentials holds.
const MAX_FILE_BYTES: u64 = 64 << 10;

fn denied(origin: &str, why: String, remedy: &'static str) -> OriginError {
    OriginError::Denied {
        origin: origin.to_owned(),
        object: "/".to_owned(),
        why,
        remedy,
    }
}

/// A secret or a file that has too little in it: `what` is missing, which is found under `keys`.
pub(super) fn incomplete(origin: &str, what: &str, keys: &'static str) -> OriginError {
    denied(
        origin,
        format!("the credentials have no {what} ({keys})"),
        "give them those keys",
    )
}

/// What says who asks to a web server (RFC 6750, RFC 7617): a token, or a user's name and password.
pub(super) fn authorization(values: &SecretValues, origin: &str) -> Result<String, OriginError> {
    let value = |name: &str| values.get(name).map(str::trim).filter(|it| !it.is_empty());
    match (
        value("HTTP_TOKEN"),
        value("HTTP_USERNAME"),
        value("HTTP_PASSWORD"),
    ) {
        (Some(token), _, _) => Ok(format!("Bearer {token}")),
        (None, Some(user), Some(password)) => {
            let both = BASE64_STANDARD.encode(format!("{user}:{password}"));
            Ok(format!("Basic {both}"))
        }
        _ => Err(incomplete(
            origin,
            "token, and no user name with a password",
            "HTTP_TOKEN, or HTTP_USERNAME and HTTP_PASSWORD",
        )),
    }
}

/// The text of a file of credentials.
pub(super) fn read_file(path: &Path, origin: &str) -> Result<String, OriginError> {
    const REMEDY: &str = "name a file of credentials on this node, and let the agent read it";
    let refused = |why: &dyn fmt::Display| {
        denied(
            origin,
            format!("credentials file {}: {why}", path.display()),
            REMEDY,
        )
    };
    let found = std::fs::metadata(path).map_err(|error| refused(&error))?;
    if !found.is_file() || found.len() > MAX_FILE_BYTES {
        return Err(refused(&"it is not a regular file of at most 64 KiB"));
    }
    std::fs::read_to_string(path).map_err(|error| refused(&error))
}

/// A file of `NAME=VALUE` lines and `#` comments. An error names the line, never what is in it.
pub(super) fn parse_lines(
    path: &Path,
    text: &str,
    origin: &str,
) -> Result<SecretValues, OriginError> {
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let values = lines.map(|(number, line)| match line.split_once('=') {
        Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
        None => {
            let why = format!(
                "credentials file {}, line {}: it has no '='",
                path.display(),
                number + 1
            );
            Err(denied(origin, why, "write NAME=VALUE, a line for each"))
        }
    });
    Ok(SecretValues::new(values.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_of_credentials_is_named_with_its_line_and_shows_no_value() {
        let path = Path::new("/etc/web");
        let parsed = |text: &str| parse_lines(path, text, "https://host");
        let values = parsed("# ours\n\nHTTP_TOKEN = a=b \n").expect("values");
        assert_eq!(values.get("HTTP_TOKEN"), Some("a=b"));
        let bad = parsed("HTTP_TOKEN=hunter2\nhunter2\n").expect_err("bad");
        let said = format!("{bad} {bad:?}");
        assert!(said.contains("/etc/web, line 2"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn who_asks_a_web_server_is_said_as_http_has_it() {
        let said = |values: &[(&str, &str)]| {
            let owned = values
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()));
            authorization(&SecretValues::new(owned.collect()), "https://host")
        };
        let token = said(&[("HTTP_TOKEN", "t\n"), ("HTTP_USERNAME", "u")]);
        assert_eq!(token.expect("a token"), "Bearer t");
        let basic = said(&[
            ("HTTP_USERNAME", "Aladdin"),
            ("HTTP_PASSWORD", "open sesame"),
        ]);
        assert_eq!(
            basic.expect("a password"),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        said(&[("HTTP_USERNAME", "u")]).expect_err("no password");
    }
}
