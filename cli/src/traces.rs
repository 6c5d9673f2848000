//! Traces for OpenTelemetry, if they are asked for: what kubelet, users and the controller had done, and how
//! long each took.
//!
//! Spans are those of the target [`TARGET`], with the log's events in them. They are sent in batches by a
//! thread and a runtime of their own, so that a collector that is slow or gone holds up nothing: what does
//! not fit into the queue is dropped. Without an endpoint there is none of this.

use crate::exit::Failure;
use crate::keeper::BUILD;
use clap::Args;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;
use url::Url;

/// The target of all spans: the log does not name it, so it is as it was.
pub(crate) const TARGET: &str = "trackbed_traces";

/// How long a collector may take for a batch.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);

/// How long the end waits for the last batch.
const LAST_WITHIN: Duration = Duration::from_secs(3);

/// Where traces go.
#[derive(Args, Clone, Debug)]
pub(crate) struct TracesArgs {
    /// Send traces to this OpenTelemetry collector by OTLP over gRPC, such as http://127.0.0.1:4317
    /// [default: none are made]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
}

/// Traces that are being sent.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    runtime: Runtime,
}

impl Traces {
    /// Begins, if an endpoint is given; `service` is what this process is called there.
    pub(crate) fn start(
        args: Option<&TracesArgs>,
        service: &'static str,
    ) -> Result<Option<Traces>, Failure> {
        let endpoint = args.and_then(|args| args.otlp_endpoint.as_deref());
        // An empty variable is none.
        let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_empty()) else {
            return Ok(None);
        };
        check(endpoint)?;
        let failed = |why: &dyn std::fmt::Display| {
            Failure::usage(format!("--otlp-endpoint {endpoint}: {why}"))
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("traces")
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let inside = runtime.enter();
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(TAKEN_WITHIN)
            .build()
            .map_err(|error| failed(&error))?;
        drop(inside);
        // Names the node too, if OTEL_RESOURCE_ATTRIBUTES does.
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", BUILD))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        Ok(Some(Traces { provider, runtime }))
    }

    /// Takes the spans, with the events of ours that come while one is open.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let ours = Targets::new().with_target("trackbed", LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("trackbed"))
            .with_location(false)
            .with_threads(false)
            .with_filter(ours)
    }

    /// Sends what is left, as far as the collector takes it soon.
    pub(crate) fn end(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_WITHIN) {
            tracing::warn!(%error, "the last traces were not sent");
        }
        self.runtime.shutdown_background();
    }
}

fn check(endpoint: &str) -> Result<(), Failure> {
    let refuse =
        |why: &dyn std::fmt::Display| Failure::usage(format!("--otlp-endpoint {endpoint}: {why}"));
    let url = Url::parse(endpoint).map_err(|error| refuse(&error))?;
    match url.scheme() {
        "http" if url.has_host() => Ok(()),
        "https" => Err(refuse(
            &"traces are sent without TLS: name a collector on this node by http, which passes them on",
        )),
        _ => Err(refuse(&"write it as http://HOST:PORT")),
    }
}
