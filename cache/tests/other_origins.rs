//! Google Cloud Storage, Azure and web servers as origins, each against a small server of the test's own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use trackbed_cache::OriginUrl;
use trackbed_cache::origin::{
    ListProgress, ListedKind, ObjectIdentity, ObjectRef, OpenOrigin, Origin, OriginError, Origins,
    RequestBudget, SecretValues, Secrets,
};

const MODIFIED: &str = "Wed, 01 Jan 2025 00:00:00 GMT";

/// A server of objects: as a bucket of Google's, a container of Azure's, or a folder of files.
struct Server {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Paths that are elsewhere, and where.
    sends_on: Mutex<BTreeMap<String, String>>,
    /// What a request must have in its `Authorization` header or its query.
    wanted: Mutex<Option<String>>,
    /// What the server does not do.
    manners: Mutex<Manners>,
}

#[derive(Clone, Copy, Default)]
struct Manners {
    /// No entity tags are told.
    no_tags: bool,
    /// No times of modification are told.
    no_times: bool,
    /// All of an object is sent, whatever part is asked for.
    no_parts: bool,
    /// Conditions are not looked at.
    no_conditions: bool,
    /// WebDAV is answered.
    webdav: bool,
}

impl Server {
    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared::default());
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                let answer = service_fn(move |request| {
                    let response = shared.answer(&request);
                    async { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), answer));
            }
        });
        let server = Server { address, shared };
        for (path, bytes) in [
            ("train/a.bin", vec![1; 3000]),
            ("train/sub dir/b.bin", vec![2; 100]),
            ("train/empty", Vec::new()),
            ("other/c", vec![3]),
        ] {
            server.put(path, bytes);
        }
        server
    }

    fn put(&self, path: &str, bytes: Vec<u8>) {
        self.shared.objects.lock().insert(path.to_owned(), bytes);
    }
}

fn tag(bytes: &[u8]) -> String {
    format!(
        "\"{}-{}\"",
        bytes.len(),
        bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>()
    )
}

impl Shared {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let url = url::Url::parse(&format!("http://host{}", request.uri())).expect("a URL");
        let query: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
        let who = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|it| it.to_str().ok())
            .unwrap_or("");
        let wanted = self.wanted.lock().clone();
        if wanted.is_some_and(|wanted| {
            !who.contains(&wanted) && !url.query().is_some_and(|query| query.contains(&wanted))
        }) {
            let refused =
                "<Error><Code>AuthenticationFailed</Code><Message>hunter2</Message></Error>";
            return answer(StatusCode::FORBIDDEN, refused.into());
        }
        // Google's service is asked with all of a key encoded, slashes too.
        let path = url.path().trim_start_matches('/');
        let path = url::form_urlencoded::parse(path.as_bytes()).next();
        let path = path.map_or(String::new(), |(path, _)| path.into_owned());
        let prefix = query.get("prefix").map_or("", String::as_str);
        if query.contains_key("list-type") {
            return answer(StatusCode::OK, self.google(prefix).into());
        }
        if query.get("comp").is_some_and(|it| it == "list") {
            return answer(StatusCode::OK, self.azure(prefix).into());
        }
        let key = path.strip_prefix("sets/").unwrap_or(&path);
        if request.method().as_str() == "PROPFIND" && self.manners.lock().webdav {
            return answer(StatusCode::MULTI_STATUS, self.webdav(key).into());
        }
        if let Some(to) = self.sends_on.lock().get(key) {
            let mut response = answer(StatusCode::FOUND, Vec::new());
            let to = HeaderValue::from_str(to).expect("a header");
            response.headers_mut().insert("location", to);
            return response;
        }
        match self.objects.lock().get(key) {
            Some(bytes) => self.object(request.method(), request.headers(), bytes),
            None => answer(StatusCode::NOT_FOUND, "no such thing".into()),
        }
    }

    /// Files and folders directly below a prefix.
    fn below(&self, prefix: &str) -> (Vec<(String, Vec<u8>)>, Vec<String>) {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for (key, bytes) in self.objects.lock().iter() {
            match key.strip_prefix(prefix).map(|rest| rest.split_once('/')) {
                Some(None) => files.push((key.clone(), bytes.clone())),
                Some(Some((folder, _))) => folders.push(format!("{prefix}{folder}/")),
                None => {}
            }
        }
        folders.dedup();
        (files, folders)
    }

    fn google(&self, prefix: &str) -> String {
        let (files, folders) = self.below(prefix);
        let files = files.iter().map(|(key, bytes)| {
            format!(
                "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>2025-01-01T00:00:00Z\
                 </LastModified><ETag>{}</ETag></Contents>",
                bytes.len(),
                tag(bytes)
            )
        });
        let folders = folders
            .iter()
            .map(|it| format!("<CommonPrefixes><Prefix>{it}</Prefix></CommonPrefixes>"));
        let all: String = files.chain(folders).collect();
        format!("<ListBucketResult>{all}</ListBucketResult>")
    }

    fn azure(&self, prefix: &str) -> String {
        let (files, folders) = self.below(prefix);
        let files = files.iter().map(|(key, bytes)| {
            format!(
                "<Blob><Name>{key}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified>\
                 <Content-Length>{}</Content-Length><Content-Type>x/y</Content-Type><Etag>{}</Etag>\
                 </Properties></Blob>",
                bytes.len(),
                tag(bytes)
            )
        });
        let folders = folders
            .iter()
            .map(|it| format!("<BlobPrefix><Name>{it}</Name></BlobPrefix>"));
        let all: String = files.chain(folders).collect();
        format!("<EnumerationResults><Blobs>{all}</Blobs><NextMarker/></EnumerationResults>")
    }

    /// A folder and what lies directly in it.
    fn webdav(&self, folder: &str) -> String {
        let prefix = format!("{}/", folder.trim_end_matches('/'));
        let (files, folders) = self.below(&prefix);
        let properties = |path: &str, inner: String| {
            format!(
                "<D:response><D:href>/{}</D:href><D:propstat><D:prop><D:getlastmodified>{MODIFIED}\
                 </D:getlastmodified>{inner}</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>\
                 </D:response>",
                path.replace(' ', "%20")
            )
        };
        let collection = || "<D:resourcetype><D:collection/></D:resourcetype>".to_owned();
        let files = files.iter().map(|(key, bytes)| {
            let inner = format!(
                "<D:resourcetype/><D:getcontentlength>{}</D:getcontentlength><D:getetag>{}</D:getetag>",
                bytes.len(),
                tag(bytes)
            );
            properties(key, inner)
        });
        let folders = std::iter::once(&prefix)
            .chain(&folders)
            .map(|folder| properties(folder, collection()));
        let all: String = folders.chain(files).collect();
        format!("<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\">{all}</D:multistatus>")
    }

    fn object(&self, method: &Method, headers: &HeaderMap, bytes: &[u8]) -> Response<Full<Bytes>> {
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|it| it.to_str().ok())
                .map(str::to_owned)
        };
        let own = tag(bytes);
        let manners = *self.manners.lock();
        let other = text("if-match").is_some_and(|wanted| wanted != own);
        if other && !manners.no_conditions {
            return answer(StatusCode::PRECONDITION_FAILED, "another".into());
        }
        let range = text("range").and_then(|range| {
            if manners.no_parts {
                return None;
            }
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))
        });
        let mut response = match range {
            Some((from, _)) if from >= bytes.len() => {
                return answer(StatusCode::RANGE_NOT_SATISFIABLE, "hunter2".into());
            }
            Some((from, to)) => {
                let to = (to + 1).min(bytes.len());
                let mut response = answer(StatusCode::PARTIAL_CONTENT, bytes[from..to].to_vec());
                let said = format!("bytes {from}-{}/{}", to - 1, bytes.len());
                let said = HeaderValue::from_str(&said).expect("a header");
                response.headers_mut().insert("content-range", said);
                response
            }
            None => answer(StatusCode::OK, bytes.to_vec()),
        };
        if method == Method::HEAD {
            *response.body_mut() = Full::default();
            response
                .headers_mut()
                .insert("content-length", bytes.len().into());
        }
        if !manners.no_tags {
            let own = HeaderValue::from_str(&own).expect("a header");
            response.headers_mut().insert("etag", own);
        }
        if !manners.no_times {
            let at = HeaderValue::from_str(&modified(bytes)).expect("a header");
            response.headers_mut().insert("last-modified", at);
        }
        response
    }
}

/// One content is of a later second.
fn modified(bytes: &[u8]) -> String {
    match bytes.first() {
        Some(9) => MODIFIED.replace("00:00:00", "00:00:01"),
        _ => MODIFIED.to_owned(),
    }
}

fn answer(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

/// One secret, of one name.
struct OneSecret(BTreeMap<String, String>);

impl Secrets for OneSecret {
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<SecretValues, String>> {
        let found = match (namespace, name) {
            ("team-a", "cats") => Ok(SecretValues::new(self.0.clone())),
            _ => Err("there is no such secret".to_owned()),
        };
        Box::pin(async { found })
    }
}

fn quick() -> Origins {
    Origins::new(RequestBudget {
        retries: 0,
        retry_for: Duration::ZERO,
        ..RequestBudget::default()
    })
}

async fn open(origins: &Origins, url: &str) -> Result<Arc<dyn Origin>, OriginError> {
    origins
        .open(&url.parse::<OriginUrl>().expect("a URL"))
        .await
}

/// What is listed: path, size, identity.
async fn listed(origin: &Arc<dyn Origin>) -> Vec<(String, u64, ObjectIdentity)> {
    let listing = origin.list(&ListProgress::default()).await.expect("lists");
    let files = listing.entries().filter_map(|entry| match entry.kind {
        ListedKind::File { size, identity } => Some((
            String::from_utf8(entry.path).expect("UTF-8"),
            size,
            identity,
        )),
        _ => None,
    });
    files.collect()
}

async fn read(
    origin: &Arc<dyn Origin>,
    (path, size, identity): &(String, u64, ObjectIdentity),
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, OriginError> {
    let mut into = vec![0; len];
    let object = ObjectRef {
        path: path.as_bytes(),
        size: *size,
        identity,
    };
    origin.read(object, offset, &mut into).await.map(|()| into)
}

/// Lists three files below the prefix, reads them, and notices that one has changed and one is gone.
async fn is_an_origin(server: &Server, url: &str) {
    let origins = quick();
    let origin = open(&origins, url).await.expect("opens");
    let files = listed(&origin).await;
    let names: Vec<_> = files
        .iter()
        .map(|(path, size, _)| (path.as_str(), *size))
        .collect();
    assert_eq!(
        names,
        [("a.bin", 3000), ("empty", 0), ("sub dir/b.bin", 100)]
    );
    assert_eq!(
        read(&origin, &files[0], 1000, 2000).await.expect("reads"),
        vec![1; 2000]
    );
    assert_eq!(
        read(&origin, &files[2], 0, 100).await.expect("reads"),
        vec![2; 100]
    );
    server.put("train/a.bin", vec![9; 3000]);
    let changed = read(&origin, &files[0], 0, 10).await.expect_err("changed");
    assert!(matches!(changed, OriginError::Changed { .. }), "{changed}");
    assert!(changed.to_string().contains("a.bin"), "{changed}");
    server.shared.objects.lock().remove("train/sub dir/b.bin");
    let gone = read(&origin, &files[2], 0, 10).await.expect_err("gone");
    assert!(matches!(gone, OriginError::Missing { .. }), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_google_s_is_listed_read_and_pinned() {
    let server = Server::start().await;
    let url = format!(
        "gs://sets/train?endpoint=http://{}&credentials=none",
        server.address
    );
    is_an_origin(&server, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_s_token_is_sent_and_never_shown() {
    let server = Server::start().await;
    let url = format!(
        "az://account1/sets/train?endpoint=http://{}&credentials=secret:team-a/cats",
        server.address
    );
    let secret = BTreeMap::from([(
        "AZURE_STORAGE_SAS_TOKEN".to_owned(),
        "sig=hunter2".to_owned(),
    )]);
    let origins = Origins::with_secrets(Arc::new(OneSecret(secret)));
    let origin = open(&origins, &url).await.expect("opens");
    *server.shared.wanted.lock() = Some("sig=hunter2".to_owned());
    let files = listed(&origin).await;
    assert_eq!(
        read(&origin, &files[0], 0, 10).await.expect("reads"),
        vec![1; 10]
    );
    *server.shared.wanted.lock() = Some("sig=hunter3".to_owned());
    let listing = origin
        .list(&ListProgress::default())
        .await
        .expect_err("denied");
    let reading = read(&origin, &files[0], 0, 10).await.expect_err("denied");
    for denied in [listing, reading] {
        assert!(matches!(denied, OriginError::Denied { .. }), "{denied}");
        let said = format!("{denied} {denied:?}");
        assert!(!said.contains("hunter"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_azure_s_is_listed_read_and_pinned() {
    let server = Server::start().await;
    let url = format!(
        "az://account1/sets/train?endpoint=http://{}&credentials=none",
        server.address
    );
    is_an_origin(&server, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_a_web_server_is_listed_by_its_index_read_and_pinned() {
    let server = Server::start().await;
    server.put(
        "train/files.txt",
        b"a.bin\nempty\r\n\nsub dir/b.bin\n".to_vec(),
    );
    let url = format!("http://{}/train/?index=files.txt", server.address);
    is_an_origin(&server, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_is_said_as_the_secret_says_and_is_never_shown() {
    let server = Server::start().await;
    server.put("train/files.txt", b"a.bin".to_vec());
    let url = format!(
        "http://{}/train?index=files.txt&credentials=secret:team-a/cats",
        server.address
    );
    *server.shared.wanted.lock() = Some("Bearer hunter2".to_owned());
    let with = |values: &[(&str, &str)]| {
        let values = values
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()));
        Origins::with_secrets(Arc::new(OneSecret(values.collect())))
    };
    let told = open(&with(&[("HTTP_TOKEN", "hunter2")]), &url)
        .await
        .expect("opens");
    assert_eq!(listed(&told).await.len(), 1);
    let wrong = with(&[("HTTP_USERNAME", "me"), ("HTTP_PASSWORD", "hunter3")]);
    let wrong = open(&wrong, &url).await.expect("opens");
    let denied = wrong
        .list(&ListProgress::default())
        .await
        .expect_err("denied");
    assert!(matches!(denied, OriginError::Denied { .. }), "{denied}");
    let said = format!("{denied} {denied:?}");
    assert!(!said.contains("hunter"), "{said}");
    for kind in ["gs://sets", "az://account1/sets", "http://host"] {
        let url = format!("{kind}?credentials=secret:team-a/cats");
        let Err(refused) = open(&with(&[("OTHER", "hunter2")]), &url).await else {
            panic!("{kind} opens without credentials");
        };
        let refused = refused.to_string();
        assert!(
            refused.contains("_") && !refused.contains("hunter"),
            "{refused}"
        );
        assert!(
            open(&quick(), &url).await.is_err(),
            "there are no secrets here"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_web_server_cannot_say_or_says_wrongly_is_refused_with_the_remedy() {
    let server = Server::start().await;
    let refused = async |url: String| {
        let origins = quick();
        let origin = open(&origins, &url).await.expect("opens");
        let error = origin
            .list(&ListProgress::default())
            .await
            .expect_err("refused");
        error.to_string()
    };
    let url = |query: &str| format!("http://{}/train{query}", server.address);
    let none = refused(url("?index=none.txt")).await;
    assert!(none.contains("none.txt"), "{none}");
    for index in [
        "../other/c",
        "a.bin\na.bin",
        "/etc/passwd",
        "a//b",
        "missing",
    ] {
        server.put("train/bad.txt", index.as_bytes().to_vec());
        let bad = refused(url("?index=bad.txt")).await;
        let named = index.lines().next().unwrap_or_default();
        assert!(bad.contains(named), "{index:?}: {bad}");
    }
    server.put("train/good.txt", b"a.bin".to_vec());
    let with = |manners: Manners| *server.shared.manners.lock() = manners;
    with(Manners {
        no_tags: true,
        no_times: true,
        ..Manners::default()
    });
    let silent = refused(url("?index=good.txt")).await;
    assert!(
        silent.contains("ETag") && silent.contains("a.bin"),
        "{silent}"
    );
    with(Manners {
        no_parts: true,
        ..Manners::default()
    });
    let whole = refused(url("?index=good.txt")).await;
    assert!(
        whole.contains("a.bin") && whole.contains("range requests"),
        "{whole}"
    );
    with(Manners::default());
    let webdav = refused(url("")).await;
    assert!(webdav.contains("?index="), "{webdav}");
    with(Manners {
        webdav: true,
        ..Manners::default()
    });
    let nothing = refused(format!("http://{}/nowhere", server.address)).await;
    assert!(nothing.contains("check the folder's path"), "{nothing}");
    server.put("train/a.bin/inside", vec![1]);
    let both = refused(url("")).await;
    assert!(both.contains("a.bin"), "{both}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_listed_by_webdav_read_and_pinned() {
    let server = Server::start().await;
    server.shared.manners.lock().webdav = true;
    is_an_origin(&server, &format!("http://{}/train", server.address)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_noticed_by_its_time_or_its_size_where_the_server_looks_at_no_condition()
{
    for no_tags in [true, false] {
        let server = Server::start().await;
        server.put("train/files.txt", b"a.bin".to_vec());
        *server.shared.manners.lock() = Manners {
            no_tags,
            no_conditions: true,
            ..Manners::default()
        };
        let url = format!("http://{}/train?index=files.txt", server.address);
        let origin = open(&quick(), &url).await.expect("opens");
        let files = listed(&origin).await;
        assert_eq!(
            read(&origin, &files[0], 0, 10).await.expect("reads"),
            vec![1; 10]
        );
        for other in [vec![9; 3000], vec![1; 3001], vec![1; 20], vec![]] {
            server.put("train/a.bin", other.clone());
            for offset in [0, 2000] {
                let changed = read(&origin, &files[0], offset, 10).await;
                let changed = changed.expect_err("changed");
                assert!(matches!(changed, OriginError::Changed { .. }), "{changed}");
                assert!(!changed.to_string().contains("hunter"), "{changed}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_sends_requests_to_no_other_server() {
    let (server, other) = (Server::start().await, Server::start().await);
    server.shared.sends_on.lock().extend([
        ("sent/within".to_owned(), "/index".to_owned()),
        (
            "sent/away".to_owned(),
            format!("http://{}/index", other.address),
        ),
        ("sent/round".to_owned(), "/sent/round".to_owned()),
    ]);
    for server in [&server, &other] {
        server.put("index", b"train/a.bin".to_vec());
    }
    let read_by = async |index: &str| {
        let url = format!("http://{}/?index={index}", server.address);
        let origin = open(&quick(), &url).await.expect("opens");
        let listed = origin.list(&ListProgress::default()).await;
        listed.map(|listing| listing.len())
    };
    assert_eq!(read_by("sent/within").await.expect("lists"), 1);
    let away = read_by("sent/away").await.expect_err("refused").to_string();
    assert!(away.contains(&other.address), "{away}");
    read_by("sent/round").await.expect_err("a circle ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_google_s_is_used_and_does_not_say_where_to_ask() {
    let server = Server::start().await;
    let key = serde_json::json!({
        "private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": true,
        "gcs_base_url": "http://127.0.0.1:1",
    });
    let secret = BTreeMap::from([("GOOGLE_SERVICE_ACCOUNT_KEY".to_owned(), key.to_string())]);
    let origins = Origins::with_secrets(Arc::new(OneSecret(secret)));
    let url = format!(
        "gs://sets/train?endpoint=http://{}&credentials=secret:team-a/cats",
        server.address
    );
    let own = open(&origins, &url).await.expect("opens");
    assert_eq!(listed(&own).await.len(), 3);
}
