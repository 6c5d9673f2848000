//! The name of a Kubernetes namespace.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// A namespace's name: a DNS label (RFC 1123), 1 to 63 of `a-z 0-9 -`, a letter or digit at both
/// ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Namespace(String);

impl Namespace {
    /// Checks a text. `None` if it is no namespace's name.
    pub fn parse(text: &str) -> Option<Namespace> {
        let at_end = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = bytes.len() <= 63
            && bytes.first().is_some_and(at_end)
            && bytes.last().is_some_and(at_end)
            && bytes.iter().all(|c| at_end(c) || *c == b'-');
        valid.then(|| Namespace(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Namespace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Namespace, D::Error> {
        let text = String::deserialize(deserializer)?;
        Namespace::parse(&text).ok_or_else(|| {
            let shown: String = text.chars().take(70).collect();
            serde::de::Error::custom(format!(
                "{shown:?} is not a namespace: use 1 to 63 of a-z 0-9 - with a letter or digit at both ends"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dns_labels_are_namespaces() {
        for text in ["", "-a", "a-", "A", "a.b", "a b", &"a".repeat(64)] {
            assert!(Namespace::parse(text).is_none(), "{text:?}");
        }
        for text in ["a", "team-1", &"a".repeat(63)] {
            assert_eq!(Namespace::parse(text).expect("valid").as_str(), text);
        }
    }
}
