//! What an administrator writes. See [`crate::fuzzing`].

use super::members;
use crate::fuzzing::Target;

/// `members.json`.
pub(crate) const MEMBERS: Target = Target {
    name: "registry-members",
    seeds: || {
        let text = r#"{"members": [
            {"name": "node-a", "control": "10.0.0.1:7440", "weight": 300},
            {"name": "node-b", "control": "[fd00::1]:7440"}
        ]}"#;
        vec![text.as_bytes().to_vec()]
    },
    check: |bytes| {
        let text = std::str::from_utf8(bytes).ok();
        let Some(Ok(members)) = text.map(members::parse) else {
            return;
        };
        assert!(members.iter().any(|member| member.weight > 0));
        for (at, member) in members.iter().enumerate() {
            assert!((1..=63).contains(&member.name.len()) && member.weight <= 1000);
            assert!(members[..at].iter().all(|other| other.name != member.name));
        }
    },
};
