//! An OpenTelemetry collector in the test's process: takes spans by OTLP over gRPC and keeps them.

use std::io;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A span, as far as tests look at it.
#[derive(Clone, Debug)]
pub struct Span {
    /// The process that it is of.
    pub service: String,
    /// What was done.
    pub name: String,
    /// Attributes that are texts.
    pub attributes: Vec<(String, String)>,
    /// Whether it failed.
    pub failed: bool,
    /// The log's lines in it.
    pub events: Vec<String>,
}

impl Span {
    /// Whether it has an attribute of this value.
    pub fn has(&self, name: &str, value: &str) -> bool {
        let mut attributes = self.attributes.iter();
        attributes.any(|(has, what)| has == name && what == value)
    }
}

/// A running collector; dropping it ends it.
pub struct Collector {
    /// Where it takes spans.
    pub endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
    serving: JoinHandle<()>,
}

impl Collector {
    /// Starts one on loopback.
    pub async fn start() -> io::Result<Collector> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let service = TraceServiceServer::new(Keeping(spans.clone()));
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let served = Server::builder().add_service(service);
            served.serve_with_incoming(incoming).await.expect("serves");
        });
        Ok(Collector {
            endpoint,
            spans,
            serving,
        })
    }

    /// What has come so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("no panic").clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct Keeping(Arc<Mutex<Vec<Span>>>);

fn texts(attributes: Vec<KeyValue>) -> Vec<(String, String)> {
    let texts = attributes.into_iter().filter_map(|it| {
        let Value::StringValue(text) = it.value?.value? else {
            return None;
        };
        Some((it.key, text))
    });
    texts.collect()
}

#[tonic::async_trait]
impl TraceService for Keeping {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_one in request.into_inner().resource_spans {
            let resource = texts(of_one.resource.unwrap_or_default().attributes);
            let mut named = resource.into_iter();
            let service = named.find(|(name, _)| name == "service.name");
            let service = service.map(|(_, service)| service).unwrap_or_default();
            let spans = of_one.scope_spans.into_iter().flat_map(|it| it.spans);
            let spans = spans.map(|span| Span {
                service: service.clone(),
                name: span.name,
                attributes: texts(span.attributes),
                failed: span
                    .status
                    .is_some_and(|status| status.code() == StatusCode::Error),
                events: span.events.into_iter().map(|event| event.name).collect(),
            });
            self.0.lock().expect("no panic").extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
