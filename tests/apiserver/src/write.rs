//! Creating, updating, patching, applying and deleting an object.

use serde_json::{Map, Value, json};

use crate::answer::Refusal;
use crate::apply::{self, Manager};
use crate::fields;
use crate::pods;
use crate::resource::{Resource, Target};
use crate::schema;
use crate::store::Store;

/// A write, as a request asks for it.
pub(crate) struct Write {
    action: Action,
    body: Value,
    manager: String,
}

enum Action {
    Create,
    Replace,
    Merge,
    Apply { force: bool },
    Bind,
    Delete { now: bool },
}

impl Write {
    pub(crate) fn create(body: Value, manager: &str) -> Write {
        Write::new(Action::Create, body, manager)
    }

    pub(crate) fn replace(body: Value, manager: &str) -> Write {
        Write::new(Action::Replace, body, manager)
    }

    pub(crate) fn merge(body: Value, manager: &str) -> Write {
        Write::new(Action::Merge, body, manager)
    }

    pub(crate) fn apply(body: Value, manager: &str, force: bool) -> Write {
        Write::new(Action::Apply { force }, body, manager)
    }

    pub(crate) fn delete() -> Write {
        Write::delete_if(&json!({}))
    }

    /// Deletes the object as these options say: only if it has this version or uid, where those are given; a
    /// pod without asking its kubelet if no time is given to it.
    pub(crate) fn delete_if(options: &Value) -> Write {
        let now = options["gracePeriodSeconds"] == 0;
        let seen = json!({ "metadata": options["preconditions"] });
        Write::new(Action::Delete { now }, seen, "")
    }

    /// Binds a pod to this node.
    pub(crate) fn bind(node: &str) -> Write {
        Write::new(Action::Bind, json!({ "target": node }), "")
    }

    fn new(action: Action, body: Value, manager: &str) -> Write {
        Write {
            action,
            body,
            manager: manager.to_owned(),
        }
    }

    /// Carries it out; gives the object as it is then.
    pub(crate) fn carry_out(
        mut self,
        resource: &Resource,
        target: &Target,
        store: &Store,
    ) -> Result<Value, Refusal> {
        let mut target = target.clone();
        if matches!(self.action, Action::Create) {
            target = target.of_name(self.name_to_create(store)?);
        }
        self.look_at_body(resource, &target)?;
        let number = store.next_number();
        store.change(&target.key(), |before| {
            let writing = Writing {
                resource,
                target: &target,
                manager: Manager {
                    name: self.manager,
                    applies: matches!(self.action, Action::Apply { .. }),
                    subresource: target.subresource.clone(),
                    api_version: resource.api_version(),
                },
                now: now().into(),
                number,
            };
            match self.action {
                Action::Create => writing.create(before, self.body),
                Action::Bind => writing.bind(before, &self.body),
                Action::Delete { now } => writing.delete(before, &self.body, now),
                Action::Replace => writing.replace(before, self.body),
                Action::Merge => writing.merge(before, &self.body),
                Action::Apply { force } => writing.apply(before, &self.body, force),
            }
        })
    }

    fn name_to_create(&self, store: &Store) -> Result<String, Refusal> {
        let metadata = &self.body["metadata"];
        match (metadata["name"].as_str(), metadata["generateName"].as_str()) {
            (Some(name), _) if !name.is_empty() => Ok(name.to_owned()),
            (_, Some(prefix)) if !prefix.is_empty() => {
                Ok(format!("{prefix}{:05x}", store.next_number()))
            }
            _ => Err(Refusal::invalid(
                "object",
                vec![("metadata.name".into(), "Required value".into())],
            )),
        }
    }

    /// Refuses a body that is about something else than the request's path.
    fn look_at_body(&mut self, resource: &Resource, target: &Target) -> Result<(), Refusal> {
        if !self.body.is_object() {
            return Err(Refusal::bad_request("the body is no object"));
        }
        let whole = !matches!(
            self.action,
            Action::Merge | Action::Bind | Action::Delete { .. }
        );
        let (kind, version) = (&self.body["kind"], &self.body["apiVersion"]);
        if whole && (*kind != resource.kind || *version != resource.api_version()) {
            return Err(Refusal::bad_request(format!(
                "{version} {kind} in the body, {} {} in the path",
                resource.api_version(),
                resource.kind
            )));
        }
        let name = target.name.as_deref().unwrap_or_default();
        let named = [("name", name), ("namespace", target.namespace.as_str())];
        for (field, wanted) in named {
            let found = self.body["metadata"][field].as_str();
            let optional = field == "namespace" || !whole || matches!(self.action, Action::Create);
            if found.is_some_and(|found| found != wanted) || (found.is_none() && !optional) {
                return Err(Refusal::bad_request(format!(
                    "metadata.{field} is {found:?} in the body, {wanted:?} in the path"
                )));
            }
        }
        Ok(())
    }
}

/// A write with what it is about.
struct Writing<'w> {
    resource: &'w Resource,
    target: &'w Target,
    manager: Manager,
    now: Value,
    number: u64,
}

type After = Result<Option<Value>, Refusal>;

impl Writing<'_> {
    fn what(&self) -> String {
        let name = self.target.name.as_deref().unwrap_or_default();
        format!("{} {name:?}", self.resource.full_name())
    }

    fn there<'b>(&self, before: Option<&'b Value>) -> Result<&'b Value, Refusal> {
        before.ok_or_else(|| Refusal::not_found(format!("{} not found", self.what())))
    }

    fn create(&self, before: Option<&Value>, mut body: Value) -> After {
        if before.is_some() {
            return Err(Refusal::exists(format!("{} already exists", self.what())));
        }
        if body["metadata"]["resourceVersion"]
            .as_str()
            .is_some_and(|it| !it.is_empty())
        {
            return Err(Refusal::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.as_new(&mut body);
        self.checked(&mut body, None)?;
        apply::update(
            None,
            &mut body,
            self.resource.schema.as_ref(),
            &self.manager,
            &self.now,
        );
        Ok(Some(body))
    }

    /// Gives a new object what the server gives it, and takes what it may not have.
    fn as_new(&self, body: &mut Value) {
        if self.resource.status {
            drop_field(body, "status");
        }
        let metadata = &mut body["metadata"];
        for field in ["managedFields", "deletionTimestamp", "resourceVersion"] {
            drop_field(metadata, field);
        }
        metadata["name"] = self.target.name.clone().unwrap_or_default().into();
        if self.resource.namespaced {
            metadata["namespace"] = self.target.namespace.clone().into();
        }
        metadata["uid"] = format!("00000000-0000-4000-8000-{:012x}", self.number).into();
        metadata["creationTimestamp"] = self.now.clone();
        metadata["generation"] = 1.into();
    }

    fn bind(&self, before: Option<&Value>, body: &Value) -> After {
        let node = body["target"].as_str().unwrap_or_default();
        pods::bound(self.there(before)?, node, &self.what()).map(Some)
    }

    fn delete(&self, before: Option<&Value>, preconditions: &Value, now: bool) -> After {
        let before = self.there(before)?;
        for field in ["uid", "resourceVersion"] {
            let wanted = &preconditions["metadata"][field];
            if !wanted.is_null() && *wanted != before["metadata"][field] {
                return Err(Refusal::conflict(format!(
                    "the {field} in the precondition ({wanted}) does not match"
                )));
            }
        }
        let finalizers = before["metadata"]["finalizers"].as_array();
        let waits = !now && self.resource.is_pods() && pods::has_a_kubelet(before);
        if finalizers.is_none_or(Vec::is_empty) && !waits {
            return Ok(None);
        }
        let mut after = before.clone();
        if after["metadata"]["deletionTimestamp"].is_null() {
            after["metadata"]["deletionTimestamp"] = self.now.clone();
        }
        Ok(Some(after))
    }

    fn replace(&self, before: Option<&Value>, body: Value) -> After {
        let before = self.there(before)?;
        let version = body["metadata"]["resourceVersion"].as_str();
        if version.is_none_or(str::is_empty) && self.resource.schema.is_some() {
            let mistake = (
                "metadata.resourceVersion".to_owned(),
                "must be specified for an update".to_owned(),
            );
            return Err(Refusal::invalid(&self.what(), vec![mistake]));
        }
        self.updated(before, body)
    }

    fn merge(&self, before: Option<&Value>, patch: &Value) -> After {
        let before = self.there(before)?;
        let mut body = before.clone();
        drop_field(&mut body["metadata"], "resourceVersion");
        merge(&mut body, patch);
        self.updated(before, body)
    }

    fn updated(&self, before: &Value, body: Value) -> After {
        self.same_version(before, &body)?;
        let mut after = self.kept(before, body);
        self.checked(&mut after, Some(before))?;
        if same_but_for_managers(&after, before) {
            return Ok(Some(before.clone()));
        }
        let schema = self.resource.schema.as_ref();
        apply::update(Some(before), &mut after, schema, &self.manager, &self.now);
        Ok(self.finished(before, after))
    }

    fn apply(&self, before: Option<&Value>, body: &Value, force: bool) -> After {
        if !body["metadata"]["managedFields"].is_null() {
            return Err(Refusal::bad_request("metadata.managedFields must be nil"));
        }
        let schema = self.resource.schema.as_ref();
        if let Some(schema) = schema {
            schema::check_applied(body, schema, &self.what())?;
        }
        let status = match (&self.target.subresource, self.resource.status) {
            (Some(_), _) => Some(true),
            (None, true) => Some(false),
            (None, false) => None,
        };
        let wanted = fields::of(body, schema, status);
        if let Some(before) = before {
            self.same_version(before, body)?;
            let mut after = apply::apply(before, body, wanted, &self.manager, force, &self.now)?;
            self.checked(&mut after, Some(before))?;
            return Ok(self.finished(before, after));
        }
        if self.target.subresource.is_some() {
            return self.there(None).map(|_| None);
        }
        let mut new =
            json!({ "apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": {} });
        self.as_new(&mut new);
        let mut new = apply::apply(&new, body, wanted, &self.manager, force, &self.now)?;
        self.checked(&mut new, None)?;
        Ok(Some(new))
    }

    /// Who names a version has seen that one, and no other.
    fn same_version(&self, before: &Value, body: &Value) -> Result<(), Refusal> {
        for field in ["resourceVersion", "uid"] {
            let seen = body["metadata"][field]
                .as_str()
                .filter(|seen| !seen.is_empty());
            if seen.is_some_and(|seen| before["metadata"][field] != seen) {
                return Err(Refusal::conflict(format!(
                    "Operation cannot be fulfilled on {}: the object has been modified; please apply \
                     your changes to the latest version and try again",
                    self.what()
                )));
            }
        }
        Ok(())
    }

    /// The body with what a write by this way can't change as it was.
    fn kept(&self, before: &Value, body: Value) -> Value {
        if self.target.subresource.is_some() {
            let mut after = before.clone();
            match body.get("status") {
                Some(status) => after["status"] = status.clone(),
                None => drop_field(&mut after, "status"),
            }
            return after;
        }
        let mut after = body;
        if self.resource.status {
            match before.get("status") {
                Some(status) => after["status"] = status.clone(),
                None => drop_field(&mut after, "status"),
            }
        }
        const FIXED: [&str; 8] = [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
            "resourceVersion",
            "managedFields",
        ];
        for field in FIXED {
            match before["metadata"].get(field) {
                Some(value) => after["metadata"][field] = value.clone(),
                None => drop_field(&mut after["metadata"], field),
            }
        }
        after
    }

    fn checked(&self, object: &mut Value, before: Option<&Value>) -> Result<(), Refusal> {
        if self.resource.is_pods() && self.target.subresource.is_none() {
            pods::check(object, before, &self.what())?;
        }
        match (&self.resource.schema, &self.resource.rules) {
            (Some(schema), Some(rules)) => {
                schema::check(object, before, schema, rules, &self.what())
            }
            _ => Ok(()),
        }
    }

    /// Counts the generation, and lets go what was only waiting for its finalizers.
    fn finished(&self, before: &Value, mut after: Value) -> Option<Value> {
        let rest = |object: &Value| {
            let mut object = object.as_object().cloned().unwrap_or_default();
            object.remove("metadata");
            if self.resource.status {
                object.remove("status");
            }
            object
        };
        if rest(before) != rest(&after) {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or(1);
            after["metadata"]["generation"] = (generation + 1).into();
        }
        let finalizers = after["metadata"]["finalizers"].as_array();
        let free = finalizers.is_none_or(Vec::is_empty);
        let leaving = !after["metadata"]["deletionTimestamp"].is_null();
        let waits = self.resource.is_pods() && pods::has_a_kubelet(&after);
        (!(leaving && free) || waits).then_some(after)
    }
}

fn same_but_for_managers(after: &Value, before: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        drop_field(&mut object["metadata"], "managedFields");
        object
    };
    without(after) == without(before)
}

fn drop_field(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

/// RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (name, value) in patch {
        if value.is_null() {
            drop_field(into, name);
        } else {
            merge(&mut into[name.as_str()], value);
        }
    }
}

/// The time as `metadata` has it: RFC 3339, in seconds.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
