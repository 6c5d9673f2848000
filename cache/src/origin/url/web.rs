//! Where a folder of a web server is: `https://host/folder?index=files.txt`.

use std::fmt;

use url::Url;

use super::super::{OriginError, keys};
use super::{CredentialsRef, percent_decoded, refuse, unknown_key, write_path, write_query};

/// A folder of a web server and how to get at it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebLocation {
    /// The server: `http` or `https`, a host and perhaps a port; no slash at its end.
    pub server: String,
    /// The folder's path, decoded; no slash at either end; empty for all of the server.
    pub folder: String,
    /// The path, below the folder, of the file that names the others; without one, WebDAV is asked.
    pub index: Option<String>,
    /// Where the credentials are found.
    pub credentials: CredentialsRef,
}

impl WebLocation {
    /// Of a URL whose scheme is `http` or `https`.
    pub(super) fn parse(url: &Url) -> Result<WebLocation, OriginError> {
        let folder = percent_decoded(url.path())
            .map(|path| path.trim_matches('/').to_owned())
            .filter(|path| path.is_empty() || keys::why_no_url(path).is_none())
            .ok_or_else(|| {
                refuse(
                    url,
                    "the folder's path has an empty name, a control character, or is not UTF-8",
                    "write https://host/folder, percent-encoded as UTF-8",
                )
            })?;
        let mut location = WebLocation {
            server: url.origin().ascii_serialization(),
            folder,
            index: None,
            credentials: CredentialsRef::default(),
        };
        for (key, value) in url.query_pairs() {
            match key.as_ref() {
                "index" if keys::why_no_url(&value).is_none() => {
                    location.index = Some(value.into_owned());
                }
                "index" => {
                    return Err(refuse(
                        url,
                        "the index is no path of a file below the folder",
                        "write index=files.txt: a path below the folder",
                    ));
                }
                "credentials" => location.credentials = CredentialsRef::parse(url, &value)?,
                _ => return Err(unknown_key(url, &key, "the keys are index and credentials")),
            }
        }
        Ok(location)
    }
}

impl fmt::Display for WebLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.server)?;
        if !self.folder.is_empty() {
            f.write_str("/")?;
            write_path(f, &self.folder)?;
        }
        let credentials = self.credentials.shown();
        write_query(
            f,
            &[
                ("index", self.index.as_deref()),
                ("credentials", credentials.as_deref()),
            ],
        )
    }
}
