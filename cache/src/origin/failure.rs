//! What object_store's errors mean to whoever runs the dataset.
//!
//! The library's texts quote the server's answer, which can name the access key and what was
//! signed. Only the answer's error code and what happened on the wire are passed on.

use std::error::Error as _;
use std::io;

use object_store::Error;

use super::OriginError;

const CREDENTIALS: &str =
    "check the credentials the origin refers to, and that they may list and read it";
const BUCKET: &str = "check the name of the bucket or folder, the endpoint and the region";
const REACH: &str =
    "check the endpoint, the network from this node to it, and that the service runs";
const MAX_WHY_CHARS: usize = 300;

/// Building the client failed: the configuration is no good.
pub(super) fn cannot_build(url: &str, error: &Error) -> OriginError {
    OriginError::Unavailable {
        origin: url.into(),
        why: why(error),
        remedy: "check the origin's URL and the variables of the agent",
        transient: false,
    }
}

/// Building the client failed for what the credentials are. The library's text may quote them.
pub(super) fn bad_credentials(url: &str) -> OriginError {
    OriginError::Denied {
        origin: url.into(),
        object: "/".into(),
        why: "the credentials cannot be read".into(),
        remedy: "write them as the service gave them: a service account's key as JSON, an account's key in \
                 base64, a SAS token as NAME=VALUE pairs joined by &",
    }
}

/// A request for the listing at `place` failed.
pub(super) fn listing(url: &str, place: &str, error: &Error) -> OriginError {
    let origin = url.to_owned();
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => denied(url, place, error),
        Error::InvalidPath { source } => bad_key(url, &shortened(&source.to_string())),
        _ if credentials_missing(error) => denied(url, place, error),
        _ if wrong_place(error) => OriginError::Unavailable {
            origin,
            why: why(error),
            remedy: BUCKET,
            transient: false,
        },
        _ => OriginError::Unavailable {
            origin,
            why: why(error),
            remedy: REACH,
            transient: true,
        },
    }
}

/// A key that no file can have.
pub(super) fn bad_key(url: &str, why: &str) -> OriginError {
    OriginError::Unavailable {
        origin: url.into(),
        why: why.to_owned(),
        remedy: "rename or delete the object, or name a prefix without it",
        transient: false,
    }
}

/// A server that gives objects as a whole only.
pub(super) fn no_ranges(url: &str, object: &str) -> OriginError {
    OriginError::Unavailable {
        origin: url.into(),
        why: format!("asked for a part of {object}, the server sends all of it"),
        remedy: "serve the files by a server that supports range requests (status 206), or copy them to a bucket",
        transient: false,
    }
}

/// Reading an object failed in a way that is neither "gone" nor "changed".
pub(super) fn reading(
    url: &str,
    object: &str,
    offset: u64,
    length: u64,
    error: &Error,
) -> OriginError {
    match error {
        Error::NotFound { .. } => OriginError::Missing {
            origin: url.into(),
            object: object.into(),
        },
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            denied(url, object, error)
        }
        _ if status(error) == Some(410) => OriginError::Missing {
            origin: url.into(),
            object: object.into(),
        },
        _ if credentials_missing(error) => denied(url, object, error),
        _ => OriginError::Read {
            origin: url.into(),
            object: object.into(),
            offset,
            length,
            source: io::Error::other(why(error)),
            transient: true,
        },
    }
}

/// What a file of credentials lacks, or why it cannot be read: already free of secrets.
fn is_credentials_error(error: &Error) -> bool {
    matches!(error, Error::Generic { store, .. } if *store == super::bucket::CREDENTIALS_FILE)
}

/// Whether the service says that the object is shorter than where the read begins.
pub(super) fn is_invalid_range(error: &Error) -> bool {
    status(error) == Some(416) || code(error).is_some_and(|code| code == "InvalidRange")
}

fn credentials_missing(error: &Error) -> bool {
    is_credentials_error(error)
        || matches!(status(error), Some(401 | 403))
        || code(error).is_some_and(|code| REFUSED.contains(&code.as_str()))
}

/// Codes that servers answer to wrong credentials with a status other than 401 and 403.
const REFUSED: [&str; 6] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "AccessDenied",
    "NotSignedUp",
];

/// Whether there is no such bucket, or it is in another region. What a listing answers comes
/// without the library's own sorting by status.
fn wrong_place(error: &Error) -> bool {
    const CODES: [&str; 5] = [
        "NoSuchBucket",
        "InvalidBucketName",
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    ];
    matches!(error, Error::NotFound { .. })
        || status(error) == Some(404)
        || code(error).is_some_and(|code| CODES.contains(&code.as_str()))
}

fn denied(url: &str, object: &str, error: &Error) -> OriginError {
    OriginError::Denied {
        origin: url.into(),
        object: object.into(),
        why: match code(error) {
            Some(code) => code,
            None if is_credentials_error(error) => why(error),
            None => "the service refused the request".into(),
        },
        remedy: CREDENTIALS,
    }
}

/// By this the library's text tells the status of an answer, which its body follows.
const STATUS: &str = "non-2xx status code: ";

/// The status that the server answered with, if that is why a request failed.
pub(super) fn status(error: &Error) -> Option<u16> {
    let text = error.to_string();
    let (_, after) = text.split_once(STATUS)?;
    after.get(..3)?.parse().ok()
}

/// The `<Code>` of the server's answer, which the library quotes in its text.
fn code(error: &Error) -> Option<String> {
    let text = error.to_string();
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    (code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric())).then(|| code.to_owned())
}

/// What happened, in one line: the innermost reason, and no text of the server's but its code.
fn why(error: &Error) -> String {
    if let Some(code) = code(error) {
        return format!("the service answered {code}");
    }
    let outer = error.to_string();
    let mut innermost = String::new();
    let mut source = error.source();
    while let Some(inner) = source {
        innermost = inner.to_string();
        source = inner.source();
    }
    // What the server said, if anything, begins with its markup or follows the status.
    let quoted = |text: &str| {
        let text = text.split('<').next().unwrap_or("");
        let end = text.find(STATUS).map_or(text.len(), |at| {
            let after = at + STATUS.len();
            text[after..]
                .find(':')
                .map_or(text.len(), |len| after + len)
        });
        text[..end].trim().to_owned()
    };
    let (outer, innermost) = (quoted(&outer), quoted(&innermost));
    if innermost.is_empty() || outer.contains(&innermost) {
        shortened(&outer)
    } else {
        shortened(&format!("{outer}: {innermost}"))
    }
}

fn shortened(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(MAX_WHY_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(MAX_WHY_CHARS).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoting(answer: &str) -> Error {
        Error::Generic {
            store: "S3",
            source: format!("server error: {answer}").into(),
        }
    }

    #[test]
    fn what_the_server_quotes_of_a_request_is_not_repeated() {
        let error = quoting(
            "<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIASECRET</AWSAccessKeyId></Error>",
        );
        let text = listing("s3://sets/", "/", &error).to_string();
        assert!(text.contains("InvalidAccessKeyId"), "{text}");
        assert!(!text.contains("AKIASECRET"), "{text}");
        let text =
            reading("s3://sets/", "a", 0, 1, &quoting("<html>AKIASECRET</html>")).to_string();
        assert!(!text.contains("AKIASECRET"), "{text}");
        let plain = Error::Generic {
            store: "HTTP",
            source: "non-2xx status code: 500 Internal Server Error: AKIASECRET".into(),
        };
        let text = reading("http://host", "a", 0, 1, &plain).to_string();
        assert!(
            text.contains("500") && !text.contains("AKIASECRET"),
            "{text}"
        );
    }

    #[test]
    fn a_code_that_is_no_code_is_not_believed() {
        assert_eq!(code(&quoting("<Code>../../etc\n</Code>")), None);
        assert_eq!(code(&quoting("<Code>SlowDown")), None);
    }
}
