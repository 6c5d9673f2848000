//! Which fields of an object somebody has set: the sets behind `metadata.managedFields`.
//!
//! A field is named by its path. Lists are one field (atomic) unless the schema says that they are maps,
//! whose items have keys, or sets of values.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Field(String),
    /// An item of a list that is a map: its keys, as JSON.
    Item(BTreeMap<String, String>),
    /// An item of a list that is a set, as JSON.
    Value(String),
}

/// Where a field is.
pub(crate) type Path = Vec<Step>;

/// Fields, each by its path. Of an object only what is in it; of a list that is a map also its items.
pub(crate) type Fields = BTreeSet<Path>;

/// What the server itself keeps in `metadata`: nobody's.
const SERVERS: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "selfLink",
];

/// All fields of an object; of its status only if it is about that, and then nothing else.
pub(crate) fn of(object: &Value, schema: Option<&Value>, status_alone: Option<bool>) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        let wanted = match name.as_str() {
            "apiVersion" | "kind" => false,
            "status" => status_alone != Some(false),
            _ => status_alone != Some(true),
        };
        if !wanted {
            continue;
        }
        let mut path = vec![Step::Field(name.clone())];
        if name == "metadata" {
            for (name, value) in value.as_object().into_iter().flatten() {
                if !SERVERS.contains(&name.as_str()) {
                    path.push(Step::Field(name.clone()));
                    collect(
                        value,
                        metadata_schema(name).as_ref(),
                        &mut path,
                        &mut fields,
                    );
                    path.pop();
                }
            }
        } else {
            collect(value, property(schema, name), &mut path, &mut fields);
        }
    }
    fields
}

fn metadata_schema(field: &str) -> Option<Value> {
    match field {
        "finalizers" => Some(json!({ "x-kubernetes-list-type": "set" })),
        "ownerReferences" => Some(json!({ "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"] })),
        _ => None,
    }
}

fn property<'s>(schema: Option<&'s Value>, name: &str) -> Option<&'s Value> {
    let schema = schema?;
    let named = schema["properties"].get(name);
    named.or_else(|| {
        schema
            .get("additionalProperties")
            .filter(|inner| inner.is_object())
    })
}

fn collect(value: &Value, schema: Option<&Value>, path: &mut Path, fields: &mut Fields) {
    match value {
        Value::Object(object) if !object.is_empty() && !is_atomic(schema) => {
            for (name, value) in object {
                path.push(Step::Field(name.clone()));
                collect(value, property(schema, name), path, fields);
                path.pop();
            }
        }
        Value::Array(items) if list_type(schema) == "set" => {
            for item in items {
                path.push(Step::Value(item.to_string()));
                fields.insert(path.clone());
                path.pop();
            }
        }
        Value::Array(items) if list_type(schema) == "map" => {
            let inner = schema.and_then(|schema| schema.get("items"));
            for item in items {
                path.push(Step::Item(keys(item, schema)));
                fields.insert(path.clone());
                for (name, value) in item.as_object().into_iter().flatten() {
                    path.push(Step::Field(name.clone()));
                    collect(value, property(inner, name), path, fields);
                    path.pop();
                }
                path.pop();
            }
        }
        _ => {
            fields.insert(path.clone());
        }
    }
}

fn is_atomic(schema: Option<&Value>) -> bool {
    schema.is_some_and(|schema| schema["x-kubernetes-map-type"] == "atomic")
}

fn list_type(schema: Option<&Value>) -> &str {
    schema
        .and_then(|schema| schema["x-kubernetes-list-type"].as_str())
        .unwrap_or("atomic")
}

/// The keys of an item of a list that is a map.
pub(crate) fn keys(item: &Value, schema: Option<&Value>) -> BTreeMap<String, String> {
    let names = schema.and_then(|schema| schema["x-kubernetes-list-map-keys"].as_array());
    let names = names.into_iter().flatten().filter_map(Value::as_str);
    names
        .map(|name| (name.to_owned(), item[name].to_string()))
        .collect()
}

fn matches(item: &Value, keys: &BTreeMap<String, String>) -> bool {
    keys.iter().all(|(name, value)| item[name] == parsed(value))
}

fn position(items: &[Value], step: &Step) -> Option<usize> {
    items.iter().position(|item| match step {
        Step::Item(keys) => matches(item, keys),
        Step::Value(value) => *item == parsed(value),
        Step::Field(_) => false,
    })
}

/// What is at a path.
pub(crate) fn get<'v>(object: &'v Value, path: &[Step]) -> Option<&'v Value> {
    path.iter().try_fold(object, |at, step| match step {
        Step::Field(name) => at.get(name),
        step => {
            let items = at.as_array()?;
            items.get(position(items, step)?)
        }
    })
}

/// Puts a value at a path, making what is on the way. An item of a list that is there stays as it is:
/// its fields have paths of their own.
pub(crate) fn set(object: &mut Value, path: &[Step], value: &Value) {
    let Some((step, rest)) = path.split_first() else {
        *object = value.clone();
        return;
    };
    match step {
        Step::Field(name) => {
            if !object.is_object() {
                *object = Value::Object(Map::new());
            }
            set(&mut object[name.as_str()], rest, value);
        }
        step => {
            if !object.is_array() {
                *object = Value::Array(Vec::new());
            }
            let Some(items) = object.as_array_mut() else {
                return;
            };
            let at = position(items, step);
            match (at, rest.is_empty()) {
                (Some(_), true) => {}
                (None, true) => items.push(value.clone()),
                (Some(at), false) => set(&mut items[at], rest, value),
                (None, false) => {
                    let mut item = Value::Object(Map::new());
                    set(&mut item, rest, value);
                    items.push(item);
                }
            }
        }
    }
}

/// Takes away what is at a path, and the objects and lists that are empty by that.
pub(crate) fn remove(object: &mut Value, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else {
        return;
    };
    match step {
        Step::Field(name) => {
            let Some(fields) = object.as_object_mut() else {
                return;
            };
            if let Some(inner) = fields.get_mut(name) {
                remove(inner, rest);
                let empty = inner.as_object().is_some_and(Map::is_empty)
                    || inner.as_array().is_some_and(Vec::is_empty);
                if rest.is_empty() || empty {
                    fields.remove(name);
                }
            }
        }
        step => {
            let Some(items) = object.as_array_mut() else {
                return;
            };
            if let Some(at) = position(items, step) {
                if rest.is_empty() {
                    items.remove(at);
                } else {
                    remove(&mut items[at], rest);
                }
            }
        }
    }
}

/// The sets as `fieldsV1` has them.
pub(crate) fn encode(fields: &Fields) -> Value {
    let mut tree = json!({});
    for path in fields {
        let mut at = &mut tree;
        for step in path {
            at = &mut at[match step {
                Step::Field(name) => format!("f:{name}"),
                Step::Item(keys) => {
                    let keys: Map<String, Value> = keys
                        .iter()
                        .map(|(name, value)| (name.clone(), parsed(value)))
                        .collect();
                    format!("k:{}", Value::Object(keys))
                }
                Step::Value(value) => format!("v:{value}"),
            }];
            if at.is_null() {
                *at = json!({});
            }
        }
        if matches!(path.last(), Some(Step::Item(_))) {
            at["."] = json!({});
        }
    }
    tree
}

/// The sets of `fieldsV1` that [`encode`] made.
pub(crate) fn decode(tree: &Value) -> Fields {
    let mut fields = Fields::new();
    walk(tree, &mut Vec::new(), &mut fields);
    fields
}

fn walk(tree: &Value, path: &mut Path, fields: &mut Fields) {
    let Some(inner) = tree.as_object() else {
        return;
    };
    if inner.is_empty() && !path.is_empty() {
        fields.insert(path.clone());
    }
    for (name, below) in inner {
        let step = match name.split_once(':') {
            Some(("f", name)) => Step::Field(name.to_owned()),
            Some(("v", value)) => Step::Value(value.to_owned()),
            Some(("k", keys)) => Step::Item(
                parsed(keys)
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, value)| (name.clone(), value.to_string()))
                    .collect(),
            ),
            _ => {
                fields.insert(path.clone());
                continue;
            }
        };
        path.push(step);
        walk(below, path, fields);
        path.pop();
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// A path as messages show it.
pub(crate) fn shown(path: &Path) -> String {
    let steps = path.iter().map(|step| match step {
        Step::Field(name) => format!(".{name}"),
        Step::Item(keys) => format!("{keys:?}"),
        Step::Value(value) => format!("[={value}]"),
    });
    steps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_fields_survives_being_written_down() {
        let schema = json!({ "properties": { "status": { "properties": { "conditions": {
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"] } } } } });
        let object = json!({ "kind": "X", "metadata": { "name": "a", "labels": { "x/y": "1" },
            "finalizers": ["f:1"] }, "spec": { "list": [1, 2], "empty": {} },
            "status": { "conditions": [{ "type": "A:B", "status": "True" }] } });
        let fields = of(&object, Some(&schema), None);
        assert_eq!(fields.len(), 7, "{fields:?}");
        assert_eq!(decode(&encode(&fields)), fields);
        let status = of(&object, Some(&schema), Some(true));
        assert_eq!(status.len(), 3);
        for path in &fields {
            assert!(get(&object, path).is_some(), "{}", shown(path));
        }
    }
}
