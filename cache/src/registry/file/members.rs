//! `members.json`, as an administrator writes it. Errors name the line.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::Member;

/// The largest weight, and so the largest ratio between two nodes.
const MAX_WEIGHT: u32 = 1000;
const DEFAULT_WEIGHT: u32 = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    /// Each as it stands in the text, so that its line is known.
    #[serde(borrow)]
    members: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    control: String,
    #[serde(default = "default_weight")]
    weight: u32,
}

fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}

/// The members, or what is wrong and on which line.
pub(super) fn parse(text: &str) -> Result<Vec<Member>, String> {
    let file: File<'_> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut lines_by_name = HashMap::new();
    let mut members = Vec::with_capacity(file.members.len());
    for raw in file.members {
        let line = line_of(text, raw.get());
        let at = |why: String| format!("line {line}: {why}");
        let member: Line = serde_json::from_str(raw.get()).map_err(|e| {
            let line = line + e.line().saturating_sub(1);
            // Its own position counts from the member's first line.
            let why = e.to_string();
            let why = why.split(" at line ").next().unwrap_or(&why);
            format!("line {line}: {why}")
        })?;
        check(&member).map_err(at)?;
        if let Some(first) = lines_by_name.insert(member.name.clone(), line) {
            let why = format!("the name {:?} is already on line {first}", member.name);
            return Err(at(why));
        }
        members.push(Member {
            name: member.name,
            control: member.control,
            weight: member.weight,
        });
    }
    if members.is_empty() {
        return Err("it has no members".into());
    }
    if members.iter().all(|member| member.weight == 0) {
        return Err("every member has weight 0, so none holds data".into());
    }
    Ok(members)
}

fn check(member: &Line) -> Result<(), String> {
    if !is_dns_label(&member.name) {
        return Err(format!(
            "the name {:?} is not a DNS label (1 to 63 of a-z 0-9 -, no - at an end)",
            member.name
        ));
    }
    let port = member.control.rsplit_once(':').and_then(|(host, port)| {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]%".contains(c);
        let valid = !host.is_empty() && host.len() <= 255 && host.chars().all(plain);
        port.parse::<u16>().ok().filter(|port| valid && *port != 0)
    });
    if port.is_none() {
        return Err(format!(
            "the control address {:?} of {} is not host:port",
            member.control, member.name
        ));
    }
    if member.weight > MAX_WEIGHT {
        return Err(format!(
            "the weight {} of {} is more than {MAX_WEIGHT}",
            member.weight, member.name
        ));
    }
    Ok(())
}

fn is_dns_label(name: &str) -> bool {
    let at_end = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.first().is_some_and(at_end)
        && bytes.last().is_some_and(at_end)
        && bytes.iter().all(|c| at_end(c) || *c == b'-')
}

/// The line, from 1 on, that `part` of `text` begins on.
fn line_of(text: &str, part: &str) -> usize {
    let offset = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_are_read_with_a_usual_weight_unless_told() {
        let text = r#"{"members": [
            {"name": "node-a", "control": "10.0.0.1:7440", "weight": 300},
            {"name": "node-b", "control": "[fd00::1]:7440"}
        ]}"#;
        let members = parse(text).expect("valid");
        assert_eq!(members[0].weight, 300);
        assert_eq!(
            (members[1].name.as_str(), members[1].weight),
            ("node-b", 100)
        );
    }

    #[test]
    fn the_line_at_fault_is_named() {
        let a = r#"{"name": "a", "control": "h:1"}"#;
        for (second, says) in [
            (a, "already on line 2"),
            (r#"{"name": "A", "control": "h:1"}"#, "DNS label"),
            (r#"{"name": "", "control": "h:1"}"#, "DNS label"),
            (r#"{"name": "b", "control": "h"}"#, "host:port"),
            (r#"{"name": "b", "control": "h:0"}"#, "host:port"),
            (
                r#"{"name": "b", "control": "h:1", "weight": 1001}"#,
                "more than 1000",
            ),
            (
                r#"{"name": "b", "control": "h:1", "weight": -1}"#,
                "invalid value",
            ),
            (r#"{"name": "b", "control": "h:1", "weigth": 1}"#, "weigth"),
            (r#"{"name": "b"}"#, "control"),
            ("7", "invalid type"),
        ] {
            let text = format!("{{\"members\": [\n{a},\n{second}\n]}}");
            let why = parse(&text).expect_err(second);
            assert!(why.starts_with("line 3: ") && why.contains(says), "{why}");
        }
        let why =
            parse("{\"members\": [\n{\"name\": \"a\",\n\"control\": 7}]}").expect_err("a number");
        assert!(why.starts_with("line 3: "), "{why}");
        let why = parse("{\"members\": [\n{,}]}").expect_err("no JSON");
        assert!(why.contains("line 2"), "{why}");
    }

    #[test]
    fn a_cache_that_nobody_holds_is_refused() {
        assert!(parse(r#"{"members": []}"#).is_err());
        assert!(parse(r#"{"members": [{"name": "a", "control": "h:1", "weight": 0}]}"#).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(\\{\"members\": \\[)?(\\PC|\n){0,60}(\\]\\})?") {
            let _ = parse(&text);
        }
    }
}
