//! S3 and what is compatible with it. Credentials are from the agent's environment, from a secret,
//! or from a file that is read again when it changes, as a mounted Kubernetes secret does. No value
//! is ever shown: not in `Debug`, not in an error.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::{CredentialProvider, Error};
use parking_lot::Mutex;

use super::super::super::{BucketLocation, CredentialsRef, OriginError, SecretValues};
use super::CREDENTIALS_FILE;

/// Far more than any such file holds.
const MAX_FILE_BYTES: u64 = 64 << 10;
const REMEDY: &str =
    "write a section [default] with aws_access_key_id and aws_secret_access_key into it";

/// The variables that say who we are and where we are. Others (a bucket, "skip the signature")
/// would change what the origin's URL says, and are not looked at.
const VARIABLES: [&str; 12] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
];

/// The builder for a bucket, with its credentials and what its URL says of the place.
pub(super) fn builder(
    location: &BucketLocation,
    url: &str,
    secret: Option<&SecretValues>,
) -> Result<AmazonS3Builder, OriginError> {
    let mut builder = match (&location.credentials, secret) {
        (CredentialsRef::Environment, _) => Environment::of_process().builder(),
        (CredentialsRef::Anonymous, _) => AmazonS3Builder::new().with_skip_signature(true),
        (CredentialsRef::File(path), _) => {
            AmazonS3Builder::new().with_credentials(Arc::new(FileCredentials::open(path, url)?))
        }
        (CredentialsRef::Secret { .. }, secret) => {
            let environment = secret.map(Environment::of_secret);
            let environment = environment.filter(Environment::has_keys);
            environment.ok_or_else(|| incomplete(url))?.builder()
        }
    };
    builder = builder.with_bucket_name(&location.bucket);
    if let Some(endpoint) = &location.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &location.region {
        builder = builder.with_region(region);
    }
    Ok(builder)
}

/// What the agent's environment says of AWS. Without keys or a role in it, the library asks the
/// instance's metadata service.
struct Environment {
    variables: Vec<(AmazonS3ConfigKey, String)>,
}

impl Environment {
    fn of_process() -> Environment {
        Self::of(|name| std::env::var(name).ok())
    }

    /// The values of a secret under the same names, but for those that name files and services of the
    /// node: whoever writes secrets must not choose what the node reads.
    fn of_secret(secret: &SecretValues) -> Environment {
        const OWN: [&str; 5] = [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
        ];
        Self::of(|name| {
            let value = secret.get(name).filter(|_| OWN.contains(&name));
            value.map(str::to_owned)
        })
    }

    /// Whether it has a key and its secret: without them the library would ask the machine's metadata
    /// service who it is.
    fn has_keys(&self) -> bool {
        let has = |wanted| self.variables.iter().any(|(key, _)| *key == wanted);
        has(AmazonS3ConfigKey::AccessKeyId) && has(AmazonS3ConfigKey::SecretAccessKey)
    }

    fn of(look_up: impl Fn(&str) -> Option<String>) -> Environment {
        let known = |name: &&str| {
            let key = name.to_ascii_lowercase().parse().ok()?;
            Some((key, look_up(name).filter(|value| !value.is_empty())?))
        };
        Environment {
            variables: VARIABLES.iter().filter_map(known).collect(),
        }
    }

    fn builder(&self) -> AmazonS3Builder {
        self.variables
            .iter()
            .fold(AmazonS3Builder::new(), |builder, (key, value)| {
                builder.with_config(*key, value)
            })
    }
}

/// A secret that says too little.
fn incomplete(origin: &str) -> OriginError {
    OriginError::Denied {
        origin: origin.to_owned(),
        object: "/".to_owned(),
        why: "the secret has no access key, or no secret key".to_owned(),
        remedy: "give it the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    }
}

/// A file in the format of `~/.aws/credentials`: its section `[default]`, or its only section.
struct FileCredentials {
    path: PathBuf,
    cached: Mutex<Option<(Stamp, Arc<AwsCredential>)>>,
}

/// Tells a file from the one that was read: inode, length, modification time.
type Stamp = (u64, u64, i64, i64);

impl fmt::Debug for FileCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileCredentials").field(&self.path).finish()
    }
}

#[async_trait]
impl CredentialProvider for FileCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        // A local file of some hundred bytes: reading it blocks no longer than a page cache miss.
        self.current().map_err(|why| Error::Generic {
            store: CREDENTIALS_FILE,
            source: why.into(),
        })
    }
}

impl FileCredentials {
    fn open(path: &Path, origin: &str) -> Result<FileCredentials, OriginError> {
        let file = FileCredentials {
            path: path.to_owned(),
            cached: Mutex::new(None),
        };
        match file.current() {
            Ok(_) => Ok(file),
            Err(why) => Err(OriginError::Denied {
                origin: origin.into(),
                object: "/".into(),
                why,
                remedy: REMEDY,
            }),
        }
    }

    /// The credentials as the file says now, or why it says none.
    fn current(&self) -> Result<Arc<AwsCredential>, String> {
        let refused = |e: io::Error| format!("credentials file {}: {e}", self.path.display());
        let metadata = fs::metadata(&self.path).map_err(refused)?;
        let stamp = (
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        let mut cached = self.cached.lock();
        if let Some((of, credential)) = cached.as_ref()
            && *of == stamp
        {
            return Ok(credential.clone());
        }
        if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
            return Err(format!(
                "credentials file {} is not a regular file of at most 64 KiB",
                self.path.display()
            ));
        }
        let text = fs::read_to_string(&self.path).map_err(refused)?;
        let credential = Arc::new(parse(&text).map_err(|(line, why)| {
            format!(
                "credentials file {}, line {line}: {why}",
                self.path.display()
            )
        })?);
        *cached = Some((stamp, credential.clone()));
        Ok(credential)
    }
}

/// One `[section]` of the file.
#[derive(Default)]
struct Section {
    name: String,
    line: usize,
    key: Option<String>,
    secret: Option<String>,
    token: Option<String>,
}

/// Reads the file's text. An error is the line it is about and what is wrong, never a value.
pub(in super::super::super) fn parse(text: &str) -> Result<AwsCredential, (usize, &'static str)> {
    let mut sections: Vec<Section> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let (number, line) = (number + 1, line.trim());
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name
                .strip_suffix(']')
                .ok_or((number, "a section has no ']'"))?;
            sections.push(Section {
                name: name.trim().to_owned(),
                line: number,
                ..Section::default()
            });
            continue;
        }
        let (name, value) = line.split_once('=').ok_or((
            number,
            "neither a [section], nor name = value, nor a # comment",
        ))?;
        let section = sections
            .last_mut()
            .ok_or((number, "a value before the first [section]"))?;
        let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        match name.trim() {
            "aws_access_key_id" => section.key = value,
            "aws_secret_access_key" => section.secret = value,
            "aws_session_token" => section.token = value,
            // Region, output format and the like: other tools' settings.
            _ => {}
        }
    }
    let chosen = match sections
        .iter()
        .position(|section| section.name == "default")
    {
        Some(index) => sections.swap_remove(index),
        None if sections.len() == 1 => sections.swap_remove(0),
        None => return Err((1, "it has no section [default], and not exactly one other")),
    };
    Ok(AwsCredential {
        key_id: chosen
            .key
            .ok_or((chosen.line, "the section has no aws_access_key_id"))?,
        secret_key: chosen
            .secret
            .ok_or((chosen.line, "the section has no aws_secret_access_key"))?,
        token: chosen.token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("credentials");
        fs::write(&path, text).expect("writes");
        (folder, path)
    }

    const ROTATED: &str =
        "[default]\naws_access_key_id = NEWKEY\naws_secret_access_key = newsecret=\n";

    #[test]
    fn a_rotated_secret_is_used_without_a_restart() {
        let (_folder, path) = written(
            "# mine\n[other]\naws_access_key_id=x\n[default]\naws_access_key_id = OLD\naws_secret_access_key=s\naws_session_token=t\n",
        );
        let file = FileCredentials::open(&path, "s3://sets/").expect("opens");
        let get = || file.get_credential().now_or_never().expect("at once");
        let old = get().expect("credentials");
        assert_eq!(
            (old.key_id.as_str(), old.token.as_deref()),
            ("OLD", Some("t"))
        );
        fs::write(&path, ROTATED).expect("writes");
        let new = get().expect("credentials");
        assert_eq!(
            (new.key_id.as_str(), new.secret_key.as_str()),
            ("NEWKEY", "newsecret=")
        );
    }

    #[test]
    fn a_bad_credentials_file_is_named_with_its_line_and_shows_no_value() {
        for (text, says) in [
            ("[default]\naws_access_key_id = hunter2\n", "line 1"),
            ("hunter2\n", "line 1"),
            ("[default]\n\nhunter2\n", "line 3"),
            ("[a]\nx=hunter2\n[b]\n", "no section [default]"),
        ] {
            let (_folder, path) = written(text);
            let error = FileCredentials::open(&path, "s3://sets/")
                .expect_err(text)
                .to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn debug_shows_where_credentials_are_and_not_what_they_are() {
        let (_folder, path) = written(ROTATED);
        let file = FileCredentials::open(&path, "s3://sets/").expect("opens");
        let shown = format!("{file:?}");
        assert!(shown.contains("credentials"), "{shown}");
        assert!(
            !shown.contains("newsecret") && !shown.contains("NEWKEY"),
            "{shown}"
        );
    }

    #[test]
    fn the_environment_gives_keys_and_region_and_cannot_turn_signing_off() {
        let environment = Environment::of(|name| match name {
            "AWS_ACCESS_KEY_ID" => Some("KEY".into()),
            "AWS_REGION" => Some("eu-west-1".into()),
            "AWS_SKIP_SIGNATURE" | "AWS_BUCKET" => Some("true".into()),
            _ => None,
        });
        let builder = environment.builder();
        let value = |key| builder.get_config_value(&key);
        assert_eq!(
            value(AmazonS3ConfigKey::AccessKeyId).as_deref(),
            Some("KEY")
        );
        assert_eq!(
            value(AmazonS3ConfigKey::Region).as_deref(),
            Some("eu-west-1")
        );
        assert_eq!(value(AmazonS3ConfigKey::Bucket), None);
        assert_ne!(
            value(AmazonS3ConfigKey::SkipSignature).as_deref(),
            Some("true")
        );
        let every = Environment::of(|_| Some("x".into()));
        assert_eq!(every.variables.len(), VARIABLES.len());
    }

    #[test]
    fn a_secret_gives_keys_and_names_no_file_or_service_of_the_node() {
        let values = [
            ("AWS_ACCESS_KEY_ID", "KEY"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/etc/shadow"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://10.0.0.1/"),
        ];
        let of = |values: &[(&str, &str)]| {
            let owned = values
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()));
            let secret = SecretValues::new(owned.collect());
            assert!(!format!("{secret:?}").contains("hunter2"));
            Environment::of_secret(&secret)
        };
        let environment = of(&values);
        assert!(environment.has_keys());
        assert_eq!(environment.variables.len(), 2);
        assert!(!of(&values[..1]).has_keys());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(\\[default\\]\n)?(\\PC|\n|=){0,60}") {
            let _ = parse(&text);
        }
    }
}
