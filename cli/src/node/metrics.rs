//! `/metrics` in the Prometheus text format over plain HTTP, for whoever scrapes, and beside it what a
//! daemon is asked by probes.

use crate::exit::Failure;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use trackbed_cache::{DatasetName, DiskStatus, Progress};

/// A scraper that sends its request more slowly than this is left.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Scrapers served at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 16;

/// Gives the current text of all metrics.
pub(crate) type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// Says whether a daemon is well in some respect, or why not.
pub(crate) type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What is served.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) metrics: Render,
    /// By their paths, such as `/healthz`.
    pub(crate) checks: Vec<(&'static str, Check)>,
}

/// One metric: its name, what it means, and its current value.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    pub(crate) value: u64,
}

/// How Prometheus shall take a metric.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

/// A label's value as the text format wants it between quotes.
pub(crate) fn label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The text format of some metrics, each with the same labels.
pub(crate) fn text(metrics: &[Metric], labels: &[(&str, &str)]) -> String {
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", label(value)))
        .collect();
    let labels = labels.join(",");
    let mut text = String::new();
    for Metric {
        name,
        help,
        kind,
        value,
    } in metrics
    {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{{labels}}} {value}"
        );
    }
    text
}

/// How the cache's disks are, with a disk's directory as the label.
pub(crate) fn of_disks(disks: &[DiskStatus]) -> String {
    type Value = fn(&DiskStatus) -> u64;
    let gauges: [(&str, &str, Value); 3] = [
        (
            "trackbed_cache_disk_used_bytes",
            "Bytes of datasets on a disk",
            |disk| disk.stored_bytes,
        ),
        (
            "trackbed_cache_disk_capacity_bytes",
            "The most bytes of datasets that a disk may hold",
            |disk| disk.capacity_bytes,
        ),
        (
            "trackbed_cache_disk_in_service",
            "1 for a disk that is used, 0 for one that keeps failing",
            |disk| disk.in_service.into(),
        ),
    ];
    let mut text = String::new();
    for (name, help, value) in gauges {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for disk in disks {
            let directory = label(&disk.directory.to_string_lossy());
            let _ = writeln!(text, "{name}{{disk=\"{directory}\"}} {}", value(disk));
        }
    }
    text
}

/// How much of each dataset is on this node, with the dataset's name as the label.
pub(crate) fn of_datasets(datasets: &[(DatasetName, Progress)]) -> String {
    type Value = fn(&Progress) -> u64;
    let gauges: [(&str, &str, Value); 2] = [
        (
            "trackbed_cache_dataset_bytes",
            "Bytes of a dataset's current version, where this node knows it",
            |progress| progress.bytes,
        ),
        (
            "trackbed_cache_dataset_present_bytes",
            "Bytes of a dataset's current version that are on this node's disks",
            |progress| progress.bytes_present,
        ),
    ];
    let mut text = String::new();
    for (name, help, value) in gauges {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (dataset, progress) in datasets {
            let dataset = label(dataset.as_str());
            let _ = writeln!(text, "{name}{{dataset=\"{dataset}\"}} {}", value(progress));
        }
    }
    text
}

/// Where metrics are to be served, if anywhere.
pub(crate) async fn listen(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = address else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|error| {
        Failure::usage(format!(
            "--metrics-listen {address}: {error}: choose another"
        ))
    })
}

/// Serves until dropped, if there is a listener; else waits for ever.
pub(crate) async fn serve_at(listener: Option<TcpListener>, pages: Pages) {
    match listener {
        Some(listener) => serve(listener, pages).await,
        None => std::future::pending().await,
    }
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, pages: Pages) {
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a scraper's connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let pages = pages.clone();
                async move { Ok::<_, Infallible>(respond(&request, pages).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a scraper's connection failed");
            }
            drop(place);
        });
    }
}

async fn respond<B>(request: &Request<B>, pages: Pages) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let check = pages.checks.iter().find(|(known, _)| *known == path);
    let (status, body) = match (request.method(), path) {
        // The numbers of datasets wait for the registry's file system.
        (&Method::GET | &Method::HEAD, "/metrics") => {
            match tokio::task::spawn_blocking(move || (pages.metrics)()).await {
                Ok(text) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => match check.map(|(_, check)| check()) {
            Some(Ok(())) => (StatusCode::OK, "ok\n".to_owned()),
            Some(Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            None => (StatusCode::NOT_FOUND, "only /metrics is here\n".to_owned()),
        },
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const METRIC: Metric = Metric {
        name: "trackbed_cache_origin_bytes",
        help: "Bytes read from origins.",
        kind: Kind::Counter,
        value: 7,
    };

    async fn ask(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = Pages {
            metrics: Arc::new(|| text(&[METRIC], &[("node", "a\"b")])),
            checks: vec![
                ("/healthz", Arc::new(|| Ok(()))),
                ("/readyz", Arc::new(|| Err("not yet".to_owned()))),
            ],
        };
        tokio::spawn(serve(listener, pages));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_scraper_gets_every_metric_with_its_meaning() {
        let answer = ask("GET /metrics HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains("# HELP trackbed_cache_origin_bytes Bytes read"),
            "{answer}"
        );
        assert!(
            answer.contains("trackbed_cache_origin_bytes{node=\"a\\\"b\"} 7\n"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn a_probe_is_told_whether_all_is_well_or_why_not() {
        let answer = ask("GET /healthz HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let answer = ask("GET /readyz HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("not yet"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn another_path_says_where_the_metrics_are() {
        let answer = ask("GET / HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.1 404") && answer.contains("/metrics"),
            "{answer}"
        );
    }
}
