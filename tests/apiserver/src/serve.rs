//! Requests by HTTP: what they ask for, lists in pages, watches.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use url::Url;

use crate::answer::Refusal;
use crate::resource::Target;
use crate::store::{Event, Key};
use crate::write::Write;
use crate::{Shared, TOKEN};

/// The largest body, as in etcd.
const MAX_BODY: usize = 3 << 20;
/// From one bookmark of a watch to the next.
const BOOKMARK_EVERY: Duration = Duration::from_millis(500);
/// How long a watch lasts that names no limit.
const WATCH_FOR: u64 = 1800;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves until dropped, and its connections with it.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let shared = shared.clone();
        connections.spawn(async move {
            let answer = service_fn(move |request| respond(shared.clone(), request));
            // A client that has left is no failure.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn respond(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    Ok(match answer(&shared, request).await {
        Ok(response) => response,
        Err(refusal) => json_response(refusal.code, &refusal.body()),
    })
}

fn json_response(code: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *response.status_mut() = code.try_into().unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// A request's query.
struct Query(HashMap<String, String>);

impl Query {
    fn get(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .map(String::as_str)
            .filter(|it| !it.is_empty())
    }

    fn is(&self, key: &str) -> bool {
        matches!(self.get(key), Some("true" | "1"))
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, Refusal> {
        let bad = || Refusal::bad_request(format!("{key} is no number"));
        self.get(key)
            .map(|it| it.parse().map_err(|_| bad()))
            .transpose()
    }
}

async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    if let Some(code) = *shared.faults.status.lock() {
        return Err(Refusal::made_up(code));
    }
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    if token != Some(format!("Bearer {TOKEN}").as_bytes()) {
        return Err(Refusal::unauthorized());
    }
    let url = format!("http://server{}", request.uri());
    let url = Url::parse(&url).map_err(|error| Refusal::bad_request(error.to_string()))?;
    let target = shared.kinds.parse(&url)?;
    let query = Query(url.query_pairs().into_owned().collect());
    let verb = match (request.method(), target.name.is_some(), query.is("watch")) {
        (&Method::GET, true, false) => "get",
        (&Method::GET, false, false) => "list",
        (&Method::GET, _, true) => "watch",
        (&Method::POST, false, _) => "create",
        (&Method::PUT, true, _) => "update",
        (&Method::PATCH, true, _) => "patch",
        (&Method::DELETE, true, _) => "delete",
        _ => return Err(Refusal::method()),
    };
    let call = shared.kinds.call(verb, &target);
    *shared.calls.lock().entry(call.clone()).or_default() += 1;
    if shared.faults.forbidden.lock().contains(&call) {
        return Err(Refusal::forbidden(format!("cannot {} {}", call.0, call.1)));
    }
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let body = body
        .map_err(|error| Refusal::bad_request(error.to_string()))?
        .to_bytes();
    let parsed = || {
        serde_json::from_slice::<Value>(&body)
            .map_err(|error| Refusal::bad_request(error.to_string()))
    };
    match verb {
        "get" => {
            let there = shared.store.get(&target.key());
            let name = target.name.clone().unwrap_or_default();
            let full_name = shared.kinds.resource(&target).full_name();
            let missing = || Refusal::not_found(format!("{full_name} {name:?} not found"));
            return Ok(json_response(200, &there.ok_or_else(missing)?));
        }
        "list" => return list(shared, &target, &query),
        "watch" => return watching(shared, &target, &query),
        _ => {}
    }
    let manager = query.get("fieldManager");
    let default = manager.unwrap_or("unknown");
    let write = match verb {
        "create" => Write::create(parsed()?, default),
        "update" => Write::replace(parsed()?, default),
        "delete" if body.is_empty() => Write::delete(),
        "delete" => Write::delete_if(&parsed()?),
        _ => match content_type.as_ref().map(HeaderValue::as_bytes) {
            Some(b"application/merge-patch+json") => Write::merge(parsed()?, default),
            // JSON is YAML; clients that send anything else are not used here.
            Some(b"application/apply-patch+yaml") => {
                let needed = || Refusal::bad_request("fieldManager is required for apply patch");
                Write::apply(parsed()?, manager.ok_or_else(needed)?, query.is("force"))
            }
            other => {
                let found = String::from_utf8_lossy(other.unwrap_or_default()).into_owned();
                return Err(Refusal::media_type(&found));
            }
        },
    };
    let resource = shared.kinds.resource(&target);
    let object = write.carry_out(resource, &target, &shared.store)?;
    Ok(json_response(
        if verb == "create" { 201 } else { 200 },
        &object,
    ))
}

/// Which objects a list or watch is about.
#[derive(Clone)]
struct Selection {
    target: Target,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone)]
struct Requirement {
    key: String,
    /// `None`: it must only be there.
    value: Option<String>,
    equal: bool,
}

impl Selection {
    fn new(target: &Target, query: &Query) -> Result<Selection, Refusal> {
        Ok(Selection {
            target: target.clone(),
            labels: requirements(query.get("labelSelector"))?,
            fields: requirements(query.get("fieldSelector"))?,
        })
    }

    fn has(&self, key: &Key, object: &Value) -> bool {
        let label = |name: &str| {
            object["metadata"]["labels"][name]
                .as_str()
                .map(str::to_owned)
        };
        let field = |path: &str| {
            let at = path.split('.').try_fold(object, |at, name| at.get(name))?;
            at.as_str()
                .map_or_else(|| Some(at.to_string()), |text| Some(text.to_owned()))
        };
        self.target.covers(key)
            && self.labels.iter().all(|it| it.holds(label(&it.key)))
            && self.fields.iter().all(|it| it.holds(field(&it.key)))
    }
}

impl Requirement {
    fn holds(&self, found: Option<String>) -> bool {
        match &self.value {
            None => found.is_some() == self.equal,
            value => (found == *value) == self.equal,
        }
    }
}

/// `a=b`, `a==b`, `a!=b`, `a` and `!a`, separated by commas.
fn requirements(text: Option<&str>) -> Result<Vec<Requirement>, Refusal> {
    let parts = text.into_iter().flat_map(|text| text.split(','));
    let parsed = parts.map(|part| {
        let part = part.trim();
        if part.contains([' ', '(']) {
            return Err(Refusal::bad_request(format!(
                "this server knows no selector {part:?}"
            )));
        }
        let (key, value, equal) = if let Some((key, value)) = part.split_once("!=") {
            (key, Some(value), false)
        } else if let Some((key, value)) = part.split_once('=') {
            (key, Some(value.trim_start_matches('=')), true)
        } else if let Some(key) = part.strip_prefix('!') {
            (key, None, false)
        } else {
            (part, None, true)
        };
        Ok(Requirement {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            equal,
        })
    });
    parsed.collect()
}

fn list(shared: &Arc<Shared>, target: &Target, query: &Query) -> Result<Response<Body>, Refusal> {
    let selection = Selection::new(target, query)?;
    let (all, version) = shared.store.all(|key| selection.target.covers(key));
    // A page goes on where the one before ended, at the version of the first.
    let (version, after) = match query.get("continue") {
        None => (version, 0),
        Some(token) => {
            let parts = token.split_once('-');
            let parts = parts.and_then(|(at, after)| Some((at.parse().ok()?, after.parse().ok()?)));
            let (at, after): (u64, usize) = parts
                .ok_or_else(|| Refusal::bad_request("the continue token is not one of ours"))?;
            shared.store.since(at)?;
            (at, after)
        }
    };
    let limit = query
        .number("limit")?
        .filter(|limit| *limit > 0)
        .unwrap_or(usize::MAX);
    let chosen = all
        .into_iter()
        .filter(|(key, object)| selection.has(key, object));
    let mut chosen = chosen
        .map(|(_, object)| object.as_ref().clone())
        .skip(after);
    let items: Vec<Value> = chosen.by_ref().take(limit).collect();
    let left = chosen.count();
    let mut metadata = BTreeMap::from([("resourceVersion", version.to_string())]);
    if left > 0 {
        metadata.insert("continue", format!("{version}-{}", after + items.len()));
    }
    Ok(json_response(
        200,
        &shared.kinds.list(target, items, metadata),
    ))
}

/// A watch: what it has still to say, and where it is.
struct Watch {
    shared: Arc<Shared>,
    selection: Selection,
    waiting: VecDeque<Value>,
    version: u64,
    bookmarks: bool,
    changes: watch::Receiver<u64>,
    stalled: watch::Receiver<bool>,
    cut: watch::Receiver<u64>,
    next_bookmark: Instant,
    ends: Instant,
    /// It has said that its version is too old.
    over: bool,
}

fn watching(
    shared: &Arc<Shared>,
    target: &Target,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let selection = Selection::new(target, query)?;
    let bookmarks = query.is("allowWatchBookmarks");
    let initial = query.is("sendInitialEvents");
    if initial && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        let mistake = (
            "resourceVersionMatch".to_owned(),
            "is required with sendInitialEvents".to_owned(),
        );
        return Err(Refusal::invalid("ListOptions", vec![mistake]));
    }
    let changes = shared.store.changes();
    let mut waiting = VecDeque::new();
    let from = query
        .number("resourceVersion")?
        .filter(|version| *version > 0 && !initial);
    let version = match from {
        // One that is too old is said so by the watch itself, as its only event.
        Some(version) => version,
        None => {
            let (all, version) = shared.store.all(|key| selection.target.covers(key));
            let there = all
                .into_iter()
                .filter(|(key, object)| selection.has(key, object));
            waiting.extend(
                there.map(|(_, object)| json!({ "type": "ADDED", "object": object.as_ref() })),
            );
            if initial && bookmarks {
                let mut end = bookmark(shared, target, version);
                end["object"]["metadata"]["annotations"] =
                    json!({ "k8s.io/initial-events-end": "true" });
                waiting.push_back(end);
            }
            version
        }
    };
    let limit = query.number("timeoutSeconds")?.unwrap_or(WATCH_FOR);
    let watch = Watch {
        shared: shared.clone(),
        selection,
        waiting,
        version,
        bookmarks,
        changes,
        stalled: shared.faults.stalled.subscribe(),
        cut: shared.faults.cut.subscribe(),
        next_bookmark: Instant::now() + BOOKMARK_EVERY,
        ends: Instant::now() + Duration::from_secs(limit),
        over: false,
    };
    let body = StreamBody::new(lines(watch).map(|line| Ok::<_, Infallible>(Frame::data(line))));
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

fn bookmark(shared: &Shared, target: &Target, version: u64) -> Value {
    let resource = shared.kinds.resource(target);
    json!({ "type": "BOOKMARK", "object": { "apiVersion": resource.api_version(), "kind": resource.kind,
        "metadata": { "resourceVersion": version.to_string(), "creationTimestamp": null } } })
}

fn lines(watch: Watch) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(watch, |mut watch| async move {
        let said = watch.next().await?;
        Some((Bytes::from(format!("{said}\n")), watch))
    })
}

impl Watch {
    /// What to say next; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            while *self.stalled.borrow_and_update() {
                tokio::select! {
                    changed = self.stalled.changed() => changed.ok()?,
                    _ = self.cut.changed() => return None,
                    () = tokio::time::sleep_until(self.ends) => return None,
                }
            }
            if let Some(said) = self.waiting.pop_front() {
                return Some(said);
            }
            match self.shared.store.since(self.version) {
                Ok(events) => self.take(events),
                Err(_) if self.over => return None,
                Err(refusal) => {
                    self.over = true;
                    return Some(json!({ "type": "ERROR", "object": refusal.body() }));
                }
            }
            if !self.waiting.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                changed = self.stalled.changed() => changed.ok()?,
                _ = self.cut.changed() => return None,
                () = tokio::time::sleep_until(self.ends) => return None,
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    return Some(bookmark(&self.shared, &self.selection.target, self.version));
                }
            }
        }
    }

    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            self.version = event.version;
            let selected = |object: &Option<Arc<Value>>| {
                let object = object.as_ref()?;
                self.selection
                    .has(&event.key, object)
                    .then(|| object.clone())
            };
            let (before, after) = (selected(&event.before), selected(&event.after));
            let (said, object) = match (before, after) {
                (None, None) => continue,
                (None, Some(after)) => ("ADDED", after),
                (Some(_), Some(after)) => ("MODIFIED", after),
                (Some(before), None) => ("DELETED", before),
            };
            let mut object = object.as_ref().clone();
            object["metadata"]["resourceVersion"] = event.version.to_string().into();
            self.waiting
                .push_back(json!({ "type": said, "object": object }));
        }
    }
}
