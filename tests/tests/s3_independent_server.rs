//! An S3 bucket as an origin, against a server that nobody here wrote.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use trackbed_cache::origin::{
    ListProgress, ListedEntry, ListedKind, ObjectRef, OpenOrigin, Origin, OriginError, OriginUrl,
    Origins, RequestBudget,
};
use trackbed_tests::{
    cluster::Cluster,
    privilege,
    seaweedfs::{self, SeaweedFs},
    tree::{self, Entry},
};

const BUCKET: &str = "sets";
/// More than two pages of a listing.
const FLAT: usize = 2_100;
/// Names that are awkward in URLs, in XML or in sorting, and fine as names of files.
const ODD: [&str; 9] = [
    "a file & more?#%20.txt",
    "cat ü 猫.jpg",
    "plus+equals=at@comma,semicolon;colon:",
    "quotes\"and'<tags>",
    "(round) [square] {curly} ~tilde$!*|^`",
    "images/1.bin",
    "images-2/1.bin",
    "images.d/1.bin",
    "deep/er/and/deeper/still",
];

type Objects = BTreeMap<String, Vec<u8>>;

/// Bytes that repeat nowhere near, other ones for every seed.
fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// A tree with what is hard for a client of S3, by keys below a prefix.
fn objects(flat: usize) -> Objects {
    let mut objects = Objects::new();
    for n in 0..flat {
        objects.insert(format!("flat/{n:05}"), bytes(n as u32, n % 40));
    }
    for (n, key) in ODD.into_iter().enumerate() {
        objects.insert(key.to_owned(), bytes(10_000 + n as u32, 500 + n));
    }
    objects.insert("empty".to_owned(), Vec::new());
    objects.insert("large/whole".to_owned(), bytes(1, 6_000_001));
    objects
}

fn below(prefix: &str, objects: &Objects) -> Vec<(String, Vec<u8>)> {
    objects
        .iter()
        .map(|(key, bytes)| (format!("{prefix}/{key}"), bytes.clone()))
        .collect()
}

async fn open(bucket: &str, server: &SeaweedFs, credentials: &str) -> Arc<dyn Origin> {
    let budget = RequestBudget {
        retries: 2,
        retry_for: Duration::from_secs(30),
        ..RequestBudget::default()
    };
    let endpoint = server.endpoint();
    let url = format!("s3://{bucket}/v%201?endpoint={endpoint}&credentials={credentials}");
    let url: OriginUrl = url.parse().expect("a URL");
    Origins::new(budget).open(&url).await.expect("opens")
}

async fn open_as_allowed(server: &SeaweedFs) -> Arc<dyn Origin> {
    let credentials = server.credentials_file();
    open(BUCKET, server, &credentials.display().to_string()).await
}

async fn list(origin: &Arc<dyn Origin>) -> Result<Vec<ListedEntry>, OriginError> {
    let listing = origin.list(&ListProgress::default()).await?;
    Ok(listing.entries().collect())
}

async fn read(
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
    origin.read(object, offset, &mut bytes).await?;
    Ok(bytes)
}

fn find<'a>(entries: &'a [ListedEntry], key: &str) -> &'a ListedEntry {
    entries
        .iter()
        .find(|entry| entry.path == key.as_bytes())
        .unwrap_or_else(|| panic!("{key} is not listed"))
}

fn files(entries: &[ListedEntry]) -> Vec<&str> {
    entries
        .iter()
        .filter(|entry| matches!(entry.kind, ListedKind::File { .. }))
        .map(|entry| std::str::from_utf8(&entry.path).expect("UTF-8"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_many_pages_and_odd_names_is_listed_and_read_exactly() {
    let Some(program) = seaweedfs::program() else {
        return;
    };
    let server = SeaweedFs::start(&program).await.expect("a server");
    let mut objects = objects(FLAT);
    server
        .put(BUCKET, below("v 1", &objects))
        .await
        .expect("puts");
    let in_parts = bytes(2, (11 << 20) + 7);
    server
        .put_in_parts(BUCKET, "v 1/large/in parts", &in_parts)
        .await
        .expect("puts");
    objects.insert("large/in parts".to_owned(), in_parts);
    // A neighbour whose name begins like the prefix is not a part of it.
    let neighbour = [("v 10/other".to_owned(), b"no".to_vec())];
    server.put(BUCKET, neighbour).await.expect("puts");

    let origin = open_as_allowed(&server).await;
    let progress = ListProgress::default();
    let listing = origin.list(&progress).await.expect("lists");
    let mut entries: Vec<ListedEntry> = listing.entries().collect();
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(files(&entries), objects.keys().collect::<Vec<_>>());
    let total: usize = objects.values().map(Vec::len).sum();
    assert_eq!(progress.bytes(), total as u64);

    for (key, expected) in &objects {
        let entry = find(&entries, key);
        let found = read(&origin, entry, 0, expected.len()).await.expect(key);
        assert!(found == *expected, "{key} differs");
    }
    let sent = server.bytes_sent(BUCKET).await.expect("metrics");
    assert_eq!(sent, total as u64, "each byte left the server once");

    for key in ["large/whole", "large/in parts"] {
        let expected = &objects[key];
        let entry = find(&entries, key);
        for (offset, length) in [
            (0, 1),
            ((4 << 20) - 1, 2),
            ((5 << 20) - 100, 200),
            (expected.len() - 1, 1),
        ] {
            let found = read(&origin, entry, offset as u64, length).await;
            let found = found.expect("a range inside the object");
            assert!(found == expected[offset..][..length], "{key} at {offset}");
        }
    }
    let ranges = server.bytes_sent(BUCKET).await.expect("metrics") - sent;
    assert_eq!(ranges, 2 * (1 + 2 + 200 + 1), "no more than the ranges");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_is_said_by_name_and_with_the_remedy() {
    let Some(program) = seaweedfs::program() else {
        return;
    };
    let server = SeaweedFs::start(&program).await.expect("a server");
    changed_objects_are_named(&server).await;
    wrong_credentials_are_not_shown(&server).await;

    let credentials = server.credentials_file();
    let origin = open("nowhere", &server, &credentials.display().to_string()).await;
    let error = list(&origin).await.expect_err("no such bucket").to_string();
    for part in [
        "s3://nowhere/",
        "NoSuchBucket",
        "check the name of the bucket",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

async fn changed_objects_are_named(server: &SeaweedFs) {
    let put = async |content: &[u8]| {
        let object = [("v 1/a".to_owned(), content.to_vec())];
        server.put(BUCKET, object).await.expect("puts");
    };
    put(b"first").await;
    let origin = open_as_allowed(server).await;
    let entries = list(&origin).await.expect("lists");
    let entry = find(&entries, "a");
    for content in [&b"other"[..], b"longer than it was", b""] {
        put(content).await;
        let error = read(&origin, entry, 1, 4).await.expect_err("another one");
        assert!(matches!(error, OriginError::Changed { .. }), "{error}");
        for part in ["object a of s3://sets/v%201", "register the dataset again"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
    put(b"first").await;
    let found = read(&origin, entry, 1, 4).await.expect("as it was");
    assert_eq!(found, b"irst");
    server.delete(BUCKET, "v 1/a").await.expect("deletes");
    let error = read(&origin, entry, 1, 4).await.expect_err("deleted");
    assert!(matches!(error, OriginError::Missing { .. }), "{error}");
}

async fn wrong_credentials_are_not_shown(server: &SeaweedFs) {
    let wrong = server
        .credentials_file_with_secret("hunter2")
        .expect("writes");
    let [(_, key), (_, secret)] = server.environment();
    for credentials in [&wrong.display().to_string(), "none"] {
        let origin = open(BUCKET, server, credentials).await;
        let error = list(&origin).await.expect_err("refused");
        let shown = format!("{error} {error:?}");
        assert!(matches!(error, OriginError::Denied { .. }), "{shown}");
        for part in ["s3://sets/v%201", "check the credentials"] {
            assert!(shown.contains(part), "{shown}");
        }
        for hidden in ["hunter2", key, secret] {
            assert!(!shown.contains(hidden), "{shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_fetched_once_and_read_on_every_node() {
    let Some(program) = seaweedfs::program() else {
        return;
    };
    if privilege::missing("mounting") {
        return;
    }
    let server = SeaweedFs::start(&program).await.expect("a server");
    let objects = objects(300);
    server
        .put(BUCKET, below("v 1", &objects))
        .await
        .expect("puts");
    let mut cluster = Cluster::prepare(2).expect("folders are made");
    for node in &mut cluster.nodes {
        for (name, value) in server.environment() {
            node.env(name, value);
        }
        node.start().await.expect("a node starts");
    }

    let url = format!(
        "s3://{BUCKET}/v%201?endpoint={}&region=us-east-1&credentials=env",
        server.endpoint()
    );
    cluster.nodes[0]
        .register("demo", &url)
        .await
        .expect("a bucket registers");
    let expected = as_tree(&objects);
    for node in &cluster.nodes {
        let mount = node
            .mount("demo")
            .await
            .expect("a registered dataset mounts");
        tree::assert_same(&tree::read(&mount).expect("the mount is read"), &expected);
    }

    let total = objects.values().map(Vec::len).sum::<usize>() as u64;
    let counted = cluster.origin_bytes().await;
    let sent = server.bytes_sent(BUCKET).await.expect("metrics");
    println!("{total} bytes; {counted} from the origin by the nodes, {sent} by the server");
    for (who, bytes) in [("the nodes", counted), ("the server", sent)] {
        assert!(
            (total..=total * 102 / 100).contains(&bytes),
            "{bytes} bytes of {total} left the server, say {who}"
        );
    }
    let [_, (_, secret)] = server.environment();
    for node in &cluster.nodes {
        let log = node.log();
        assert!(!log.contains(secret), "{} logs the secret", node.name);
        node.unmount("demo")
            .await
            .expect("a mounted dataset unmounts");
    }
}

/// What a mount of the objects has in it.
fn as_tree(objects: &Objects) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    for (key, bytes) in objects {
        let path = Path::new(key);
        for folder in path.ancestors().skip(1) {
            if folder != Path::new("") {
                entries.insert(folder.to_owned(), Entry::Folder(0o755));
            }
        }
        entries.insert(path.to_owned(), Entry::File(0o644, bytes.clone()));
    }
    entries
}
