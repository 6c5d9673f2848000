//! Who manages which fields: server-side apply, and what other writes do to it.
//!
//! From "Server-Side Apply" in the Kubernetes documentation: an applier owns what it applies; to set what
//! another manager has set to something else is a conflict, unless forced; what an applier no longer
//! applies, and nobody else manages, goes away. Who writes in another way owns what it changes.

use serde_json::{Value, json};

use crate::answer::Refusal;
use crate::fields::{self, Fields};

/// Who writes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manager {
    pub(crate) name: String,
    pub(crate) applies: bool,
    pub(crate) subresource: Option<String>,
    pub(crate) api_version: String,
}

struct Entry {
    manager: Manager,
    time: Value,
    fields: Fields,
}

impl Manager {
    fn is(&self, other: &Manager) -> bool {
        self.name == other.name
            && self.applies == other.applies
            && self.subresource == other.subresource
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    let listed = object["metadata"]["managedFields"].as_array();
    let listed = listed.into_iter().flatten();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    listed
        .map(|entry| Entry {
            manager: Manager {
                name: text(&entry["manager"]).unwrap_or_default(),
                applies: entry["operation"] == "Apply",
                subresource: text(&entry["subresource"]),
                api_version: text(&entry["apiVersion"]).unwrap_or_default(),
            },
            time: entry["time"].clone(),
            fields: fields::decode(&entry["fieldsV1"]),
        })
        .collect()
}

fn write(object: &mut Value, entries: Vec<Entry>) {
    let listed = entries.into_iter().filter(|entry| !entry.fields.is_empty());
    let listed: Vec<Value> = listed
        .map(|entry| {
            let Manager {
                name,
                applies,
                subresource,
                api_version,
            } = entry.manager;
            let operation = if applies { "Apply" } else { "Update" };
            let mut written = json!({ "manager": name, "operation": operation,
                "apiVersion": api_version, "time": entry.time, "fieldsType": "FieldsV1",
                "fieldsV1": fields::encode(&entry.fields) });
            if let Some(subresource) = subresource {
                written["subresource"] = subresource.into();
            }
            written
        })
        .collect();
    object["metadata"]["managedFields"] = listed.into();
}

/// What becomes of `live` when `manager` applies `applied`, of which `wanted` are the fields.
pub(crate) fn apply(
    live: &Value,
    applied: &Value,
    wanted: Fields,
    manager: &Manager,
    force: bool,
    now: &Value,
) -> Result<Value, Refusal> {
    let mut entries = entries(live);
    let mut conflicts = Vec::new();
    for entry in entries
        .iter_mut()
        .filter(|entry| !entry.manager.is(manager))
    {
        let differ = |path: &&fields::Path| {
            let is_item = matches!(path.last(), Some(fields::Step::Item(_)));
            !is_item && fields::get(live, path) != fields::get(applied, path)
        };
        let theirs: Vec<_> = entry
            .fields
            .intersection(&wanted)
            .filter(differ)
            .cloned()
            .collect();
        for path in theirs {
            conflicts.push((entry.manager.name.clone(), fields::shown(&path)));
            entry.fields.remove(&path);
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(Refusal::managed(&conflicts));
    }
    let mut result = live.clone();
    for path in &wanted {
        if let Some(value) = fields::get(applied, path) {
            fields::set(&mut result, path, value);
        }
    }
    let own = entries.iter().position(|entry| entry.manager.is(manager));
    let before = own.map_or(Fields::new(), |at| entries[at].fields.clone());
    for path in before.difference(&wanted) {
        let others = entries.iter().enumerate();
        let mut others = others.filter(|(at, _)| Some(*at) != own);
        // An item goes when nobody manages it or anything in it.
        if !others.any(|(_, entry)| entry.fields.iter().any(|held| held.starts_with(path))) {
            fields::remove(&mut result, path);
        }
    }
    if before != wanted {
        let entry = Entry {
            manager: manager.clone(),
            time: now.clone(),
            fields: wanted,
        };
        match own {
            Some(at) => entries[at] = entry,
            None => entries.push(entry),
        }
    }
    write(&mut result, entries);
    Ok(result)
}

/// Notes in `after` that `manager` made it of `before`.
pub(crate) fn update(
    before: Option<&Value>,
    after: &mut Value,
    schema: Option<&Value>,
    manager: &Manager,
    now: &Value,
) {
    let all = fields::of(after, schema, None);
    let changed: Fields = all
        .iter()
        .filter(|path| {
            before.and_then(|before| fields::get(before, path)) != fields::get(after, path)
        })
        .cloned()
        .collect();
    let mut entries = before.map(entries).unwrap_or_default();
    for entry in &mut entries {
        let own = entry.manager.is(manager);
        entry
            .fields
            .retain(|path| all.contains(path) && (own || !changed.contains(path)));
    }
    if !changed.is_empty() {
        match entries.iter_mut().find(|entry| entry.manager.is(manager)) {
            Some(entry) => {
                entry.fields.extend(changed);
                entry.time = now.clone();
            }
            None => entries.push(Entry {
                manager: manager.clone(),
                time: now.clone(),
                fields: changed,
            }),
        }
    }
    write(after, entries);
}
