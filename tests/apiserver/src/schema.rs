//! What a CustomResourceDefinition's schema does to an object: what it does not name is dropped, what it
//! defaults is set, and what breaks it is refused.

use std::collections::BTreeSet;

use kube_cel::{CompiledSchema, Validator};
use regex::Regex;
use serde_json::Value;

use crate::answer::Refusal;
use crate::fields;

/// What is wrong with a list that is a set or a map and has an item twice.
const TWICE: &str = "duplicate value";

/// A mistake: where, and what.
type Mistakes = Vec<(String, String)>;

/// Brings an object in the schema's form, then checks it; `before` is what it was, for rules about changes.
pub(crate) fn check(
    object: &mut Value,
    before: Option<&Value>,
    schema: &Value,
    rules: &CompiledSchema,
    what: &str,
) -> Result<(), Refusal> {
    let (kind, version) = (object["kind"].take(), object["apiVersion"].take());
    let metadata = object["metadata"].take();
    shape(object, schema);
    object["kind"] = kind;
    object["apiVersion"] = version;
    object["metadata"] = metadata;
    let mut mistakes = Mistakes::new();
    validate(object, schema, "", &mut mistakes);
    if mistakes.is_empty()
        && let Err(broken) = Validator::new().validate_compiled(rules, object, before)
    {
        let broken = broken.into_iter();
        mistakes.extend(broken.map(|error| (error.field_path, error.message)));
    }
    if mistakes.is_empty() {
        return Ok(());
    }
    Err(Refusal::invalid(what, mistakes))
}

/// Refuses what is applied if a list that is a set or a map has an item twice: whose it is could not be told.
pub(crate) fn check_applied(body: &Value, schema: &Value, what: &str) -> Result<(), Refusal> {
    let mut mistakes = Mistakes::new();
    validate(body, schema, "", &mut mistakes);
    mistakes.retain(|(_, why)| why == TWICE);
    match mistakes.is_empty() {
        true => Ok(()),
        false => Err(Refusal::invalid(what, mistakes)),
    }
}

/// Drops what the schema does not name, and nulls where it has none; sets defaults.
fn shape(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(object) => {
            let properties = schema["properties"].as_object();
            let additional = schema.get("additionalProperties");
            let keeps = schema["x-kubernetes-preserve-unknown-fields"] == true;
            let named = |name: &String| properties.is_some_and(|known| known.contains_key(name));
            object.retain(|name, inner| {
                let known = named(name) || additional.is_some() || keeps;
                let inner_schema = properties.and_then(|known| known.get(name)).or(additional);
                let nullable = inner_schema.is_none_or(|schema| schema["nullable"] == true);
                known && (nullable || !inner.is_null())
            });
            for (name, inner) in properties.into_iter().flatten() {
                if !object.contains_key(name)
                    && let Some(default) = inner.get("default")
                {
                    object.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in object.iter_mut() {
                let inner = properties.and_then(|known| known.get(name)).or(additional);
                if let Some(inner) = inner {
                    shape(value, inner);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                shape(item, &schema["items"]);
            }
        }
        _ => {}
    }
}

fn validate(value: &Value, schema: &Value, path: &str, mistakes: &mut Mistakes) {
    if !schema.is_object() || (value.is_null() && schema["nullable"] == true) {
        return;
    }
    let mut wrong = |why: String| mistakes.push((path.to_owned(), why));
    if let Some(wanted) = schema["type"].as_str() {
        let fits = match wanted {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            _ => true,
        };
        if !fits {
            return wrong(format!("must be of type {wanted}"));
        }
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        wrong(format!("unsupported value: {value}"));
    }
    if let Some(number) = value.as_f64() {
        if schema["minimum"]
            .as_f64()
            .is_some_and(|least| number < least)
        {
            wrong(format!("must be at least {}", schema["minimum"]));
        }
        if schema["maximum"].as_f64().is_some_and(|most| number > most) {
            wrong(format!("must be at most {}", schema["maximum"]));
        }
    }
    let mut bounded = |len: usize, least: &str, most: &str| {
        if schema[least]
            .as_u64()
            .is_some_and(|least| (len as u64) < least)
        {
            wrong(format!("{least} is {}, found {len}", schema[least]));
        }
        if schema[most].as_u64().is_some_and(|most| len as u64 > most) {
            wrong(format!("{most} is {}, found {len}", schema[most]));
        }
    };
    match value {
        Value::String(text) => {
            bounded(text.chars().count(), "minLength", "maxLength");
            if let Some(pattern) = schema["pattern"].as_str() {
                let fits = Regex::new(pattern).map(|pattern| pattern.is_match(text));
                match fits {
                    Ok(true) => {}
                    Ok(false) => wrong(format!("should match {pattern:?}")),
                    Err(error) => wrong(format!("the schema's pattern is none: {error}")),
                }
            }
        }
        Value::Array(items) => {
            bounded(items.len(), "minItems", "maxItems");
            let list_type = schema["x-kubernetes-list-type"].as_str();
            if matches!(list_type, Some("set" | "map")) {
                let keys = items.iter().map(|item| match list_type {
                    Some("map") => format!("{:?}", fields::keys(item, Some(schema))),
                    _ => item.to_string(),
                });
                if keys.collect::<BTreeSet<_>>().len() < items.len() {
                    wrong(TWICE.to_owned());
                }
            }
            for (at, item) in items.iter().enumerate() {
                validate(item, &schema["items"], &format!("{path}[{at}]"), mistakes);
            }
        }
        Value::Object(object) => {
            let required = schema["required"].as_array().into_iter().flatten();
            for name in required.filter_map(Value::as_str) {
                if !object.contains_key(name) {
                    mistakes.push((format!("{path}.{name}"), "Required value".to_owned()));
                }
            }
            for (name, inner) in object {
                let inner_schema = schema["properties"]
                    .get(name)
                    .unwrap_or(&schema["additionalProperties"]);
                validate(inner, inner_schema, &format!("{path}.{name}"), mistakes);
            }
        }
        _ => {}
    }
}
