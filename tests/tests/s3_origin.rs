//! An S3 bucket as an origin, against a server on loopback.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use trackbed_cache::origin::{
    ListProgress, ListedEntry, ListedKind, ObjectRef, OpenOrigin, Origin, OriginError, OriginUrl,
    Origins, RequestBudget,
};
use trackbed_tests::s3_server::S3Server;

const BUCKET: &str = "sets";

fn server() -> S3Server {
    let server = S3Server::start().expect("a server");
    server.create_bucket(BUCKET).expect("a bucket");
    server
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    // Not a tokio runtime: origins must not need their caller's.
    futures::executor::block_on(future)
}

fn open(url: &str) -> Result<Arc<dyn Origin>, OriginError> {
    let budget = RequestBudget {
        retries: 2,
        retry_for: Duration::from_secs(10),
        ..RequestBudget::default()
    };
    let url: OriginUrl = url.parse()?;
    wait(Origins::new(budget).open(&url))
}

fn list(origin: &Arc<dyn Origin>) -> Result<Vec<ListedEntry>, OriginError> {
    let listing = wait(origin.list(&ListProgress::default()))?;
    let mut entries: Vec<ListedEntry> = listing.entries().collect();
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn listed(server: &S3Server, prefix: &str) -> (Arc<dyn Origin>, Vec<ListedEntry>) {
    let origin = open(&server.origin_url(BUCKET, prefix)).expect("opens");
    let entries = list(&origin).expect("lists");
    (origin, entries)
}

fn read(
    origin: &Arc<dyn Origin>,
    entry: &ListedEntry,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, OriginError> {
    let ListedKind::File { size, identity } = &entry.kind else {
        panic!("{entry:?} is no file")
    };
    let object = ObjectRef {
        path: &entry.path,
        size: *size,
        identity,
    };
    let mut bytes = vec![0; length];
    wait(origin.read(object, offset, &mut bytes)).map(|()| bytes)
}

fn text(entry: &ListedEntry) -> &str {
    std::str::from_utf8(&entry.path).expect("UTF-8")
}

fn object(key: &str, bytes: &[u8]) -> [(String, Vec<u8>); 1] {
    [(key.to_owned(), bytes.to_vec())]
}

#[test]
fn a_tree_below_a_prefix_is_listed_and_its_ranges_are_read() {
    let server = server();
    let large: Vec<u8> = (0..6_000_000u32).map(|n| (n / 5) as u8).collect();
    let tree = BTreeMap::from([
        ("a file & more?#%20.txt", b"hello".to_vec()),
        ("empty", Vec::new()),
        ("images/cat ü.jpg", b"meow".to_vec()),
        ("images/large", large.clone()),
        ("images-2/x/y/z", b"deep".to_vec()),
    ]);
    let below = tree
        .iter()
        .map(|(key, bytes)| (format!("train/v 1/{key}"), bytes.clone()));
    server.put(BUCKET, below).expect("puts");
    server
        .put(BUCKET, object("train/v 10/other", b"no"))
        .expect("puts");

    let (origin, entries) = listed(&server, "train/v%201");
    let paths: Vec<_> = entries.iter().map(text).collect();
    let mut expected: Vec<_> = tree.keys().copied().collect();
    expected.sort_unstable();
    assert_eq!(paths, expected);
    for entry in &entries {
        let bytes = &tree[text(entry)];
        assert_eq!(&read(&origin, entry, 0, bytes.len()).expect("reads"), bytes);
    }
    let entry = entries
        .iter()
        .find(|entry| text(entry) == "images/large")
        .expect("listed");
    let before = server.counters();
    assert_eq!(
        read(&origin, entry, 4_194_304, 100).expect("reads"),
        large[4_194_304..][..100]
    );
    assert_eq!(
        server.counters().bytes - before.bytes,
        100,
        "no more than the range travels"
    );
    let error = read(&origin, entry, 5_999_999, 2).expect_err("past the end");
    assert!(matches!(error, OriginError::Read { .. }), "{error}");
}

#[test]
fn a_listing_of_more_than_one_page_is_complete() {
    let server = server();
    for n in 0..2345 {
        server.pretend_object(BUCKET, &format!("flat/{n:05}"), n);
        server.pretend_object(BUCKET, &format!("dirs/{n:05}/file"), 1);
    }
    let origin = open(&server.origin_url(BUCKET, "")).expect("opens");
    let progress = ListProgress::default();
    let entries = wait(origin.list(&progress)).expect("lists");
    assert_eq!(entries.len(), 2 * 2345);
    assert!(server.counters().lists > 2345);
    assert_eq!(progress.bytes(), (0..2345).sum::<u64>() + 2345);
}

#[test]
fn an_empty_directory_is_known_by_its_marker_object() {
    let server = server();
    for key in ["dir/", "dir/empty/", "dir/full/", "dir/full/file"] {
        server.pretend_object(BUCKET, key, 0);
    }
    let (_, entries) = listed(&server, "dir");
    let kinds: Vec<_> = entries
        .iter()
        .map(|entry| (text(entry), entry.kind == ListedKind::Directory))
        .collect();
    assert_eq!(
        kinds,
        [("empty", true), ("full", true), ("full/file", false)]
    );
}

#[test]
fn an_object_that_changed_since_the_listing_is_an_error_that_names_it() {
    for heeds_conditions in [true, false] {
        let server = server();
        if !heeds_conditions {
            server.ignore_conditions();
        }
        server
            .put(BUCKET, object("train/a", b"first"))
            .expect("puts");
        let (origin, entries) = listed(&server, "train");
        for content in [&b"other"[..], b"longer than it was", b""] {
            server
                .put(BUCKET, object("train/a", content))
                .expect("puts");
            let error = read(&origin, &entries[0], 0, 5).expect_err("must not be read");
            assert!(matches!(error, OriginError::Changed { .. }), "{error}");
            assert!(
                error.to_string().contains("object a of s3://sets/train"),
                "{error}"
            );
        }
        server
            .put(BUCKET, object("train/a", b"first"))
            .expect("puts");
        assert_eq!(
            read(&origin, &entries[0], 0, 5).expect("as it was"),
            b"first"
        );
        server.delete(BUCKET, "train/a").expect("deletes");
        let error = read(&origin, &entries[0], 0, 5).expect_err("deleted");
        assert!(matches!(error, OriginError::Missing { .. }), "{error}");
    }
}

#[test]
fn keys_that_cannot_be_files_are_refused_by_name() {
    for (keys, says) in [
        (&["a/../b"][..], "a/.."),
        (&["x//y"], "x//"),
        (&["/etc/passwd"], "begins with '/'"),
        (&["a", "a/b"], "\"a\" is an object"),
        (&["a", "a-b", "a/b/c"], "\"a\" is an object"),
        (&["./a"], "."),
        (&["dir/"], "dir/"),
    ] {
        let server = server();
        for key in keys {
            server.pretend_object(BUCKET, key, 1);
        }
        let origin = open(&server.origin_url(BUCKET, "")).expect("opens");
        let error = list(&origin).expect_err(says).to_string();
        assert!(error.contains(says), "{keys:?}: {error}");
        assert!(
            error.contains("rename or delete the object"),
            "{keys:?}: {error}"
        );
    }
}

#[test]
fn a_listing_that_never_ends_is_given_up() {
    let server = server();
    server.pretend_object(BUCKET, "a", 1);
    server.repeat_pages_for_ever();
    let origin = open(&server.origin_url(BUCKET, "")).expect("opens");
    let error = list(&origin).expect_err("endless").to_string();
    assert!(error.contains("never ends"), "{error}");
}

#[test]
fn a_listing_of_empty_pages_without_end_is_given_up() {
    let server = server();
    server.pretend_object(BUCKET, "a", 1);
    server.give_empty_pages_for_ever();
    let origin = open(&server.origin_url(BUCKET, "")).expect("opens");
    let error = list(&origin).expect_err("endless").to_string();
    assert!(
        error.contains("never ends") && error.contains("nothing on them"),
        "{error}"
    );
}

#[test]
fn a_service_that_is_busy_for_a_moment_is_asked_again() {
    let server = server();
    server.put(BUCKET, object("a", b"hello")).expect("puts");
    let (origin, entries) = listed(&server, "");
    server.be_busy_for(2);
    assert_eq!(read(&origin, &entries[0], 0, 5).expect("reads"), b"hello");
    server.be_busy_for(u32::MAX);
    let before = server.counters().gets;
    let error = read(&origin, &entries[0], 0, 5).expect_err("busy");
    assert!(error.is_transient(), "{error}");
    assert_eq!(server.counters().gets - before, 3, "the budget is kept");
}

#[test]
fn wrong_credentials_are_named_by_reference_and_never_shown() {
    let server = server();
    server.put(BUCKET, object("a", b"hello")).expect("puts");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("wrong");
    for (key, secret) in [
        ("trackbed-test", "hunter2-secret"),
        ("hunter2-key", "hunter2-secret"),
    ] {
        let content =
            format!("[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n");
        fs::write(&file, content).expect("writes");
        let url = format!(
            "s3://{BUCKET}/?endpoint={}&credentials={}",
            server.endpoint(),
            file.display()
        );
        let origin = open(&url).expect("opens");
        let error = list(&origin).expect_err("refused");
        let shown = format!("{error} {error:?}");
        assert!(matches!(error, OriginError::Denied { .. }), "{shown}");
        assert!(shown.contains("check the credentials"), "{shown}");
        let shown_url = url.parse::<OriginUrl>().expect("a URL").to_string();
        assert!(shown.contains(&shown_url), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let url = format!(
        "s3://{BUCKET}/?endpoint={}&credentials=none",
        server.endpoint()
    );
    let error = list(&open(&url).expect("opens")).expect_err("unsigned");
    assert!(matches!(error, OriginError::Denied { .. }), "{error}");
}

#[test]
fn a_missing_bucket_and_an_endpoint_where_nobody_listens_are_named_with_the_remedy() {
    let server = server();
    let origin = open(&server.origin_url("nowhere", "")).expect("opens");
    let error = list(&origin).expect_err("no bucket").to_string();
    for part in [
        "s3://nowhere/",
        "NoSuchBucket",
        "check the name of the bucket",
    ] {
        assert!(error.contains(part), "{error}");
    }
    // A port that was just ours, and that nobody listens on now.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let origin = open(&format!(
        "s3://{BUCKET}/?endpoint=http://{address}&credentials=none"
    ))
    .expect("opens");
    let error = list(&origin).expect_err("nobody listens");
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains("check the endpoint"), "{error}");
}
