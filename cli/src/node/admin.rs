//! The admin service: what `trackbed dataset`, the demo and tests ask of a node on its own machine.

mod keep;
mod tasks;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use trackbed_cache::open::Part;
use trackbed_cache::origin::ListProgress;
use trackbed_cache::registry::{self, Namespace};
use trackbed_cache::{
    Agent, AgentError, DatasetName, DatasetRecord, OriginUrl, Registry, Showable,
};
use trackbed_proto::node::v1::node_control_server::{NodeControl, NodeControlServer};
use trackbed_proto::node::v1::register_dataset_event::Event;
use trackbed_proto::node::v1::{
    Counters, Dataset, DatasetStatus, EvictDatasetRequest, EvictDatasetResponse, FabricCounters,
    GetCountersRequest, GetDatasetStatusRequest, ListDatasetsRequest, ListDatasetsResponse,
    PinDatasetRequest, PinDatasetResponse, Readers, RegisterDatasetEvent, RegisterDatasetRequest,
    RegisterProgress, VerifyDatasetEvent, VerifyDatasetRequest, WarmDatasetRequest, WarmProgress,
};

/// How often a registration says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// The service over the node's agent and registry.
pub(crate) struct AdminService {
    agent: Agent,
    registry: Arc<dyn Registry>,
    /// The verbs device in use; empty with TCP.
    device: String,
}

impl AdminService {
    /// The service, ready for a server.
    pub(crate) fn server(
        agent: Agent,
        registry: Arc<dyn Registry>,
        device: String,
    ) -> NodeControlServer<AdminService> {
        NodeControlServer::new(AdminService {
            agent,
            registry,
            device,
        })
    }
}

type Stream<T> = Pin<Box<dyn futures::stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl NodeControl for AdminService {
    type RegisterDatasetStream = Stream<RegisterDatasetEvent>;
    type WarmDatasetStream = Stream<WarmProgress>;
    type VerifyDatasetStream = Stream<VerifyDatasetEvent>;

    async fn register_dataset(
        &self,
        request: Request<RegisterDatasetRequest>,
    ) -> Result<Response<Stream<RegisterDatasetEvent>>, Status> {
        let RegisterDatasetRequest {
            name,
            origin,
            readers,
        } = request.into_inner();
        let name = parse_name(&name)?;
        let readers = readers.map_or(Ok(registry::Readers::AsBefore), parse_readers)?;
        let origin: OriginUrl = origin
            .parse()
            .map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let (events, receiver) = mpsc::channel(1);
        let agent = self.agent.clone();
        tokio::spawn(register(agent, name, origin, readers, events));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_datasets(
        &self,
        _: Request<ListDatasetsRequest>,
    ) -> Result<Response<ListDatasetsResponse>, Status> {
        let mut records = self
            .registry
            .datasets()
            .map_err(|error| Status::unavailable(error.to_string()))?;
        records.sort_by(|a, b| a.name.cmp(&b.name));
        let datasets = records.into_iter().map(dataset).collect();
        Ok(Response::new(ListDatasetsResponse { datasets }))
    }

    async fn get_dataset_status(
        &self,
        request: Request<GetDatasetStatusRequest>,
    ) -> Result<Response<DatasetStatus>, Status> {
        let name = parse_name(&request.into_inner().name)?;
        let open = self.agent.look_at(&name, None).await.map_err(status)?;
        let record = self.agent.dataset(&name).map_err(status)?;
        let (totals, progress) = (open.manifest().totals(), open.progress());
        let shown = open.showable();
        Ok(Response::new(DatasetStatus {
            dataset: Some(Dataset {
                name: name.to_string(),
                origin: open.origin().to_string(),
                version: open.manifest().digest().to_string(),
                readers: record.as_ref().map(readers),
            }),
            files: totals.files,
            bytes: progress.bytes,
            chunks: progress.chunks.into(),
            chunks_present: progress.chunks_present.into(),
            bytes_present: progress.bytes_present,
            native: shown.is_native(),
            native_from: match shown {
                Showable::Native(_) => "files".to_owned(),
                Showable::Image(_) => "erofs".to_owned(),
                Showable::Checked(_) => String::new(),
            },
            not_native_because: match shown {
                Showable::Checked(why) => why,
                Showable::Native(_) | Showable::Image(_) => String::new(),
            },
            versions: keep::on_node(&self.agent, &name)?,
        }))
    }

    async fn warm_dataset(
        &self,
        request: Request<WarmDatasetRequest>,
    ) -> Result<Response<Stream<WarmProgress>>, Status> {
        let WarmDatasetRequest {
            name,
            permille,
            paths,
        } = request.into_inner();
        let part = match (permille, paths.is_empty()) {
            (0, true) => Part::All,
            (0, false) => Part::Paths(paths),
            (1..=1000, true) => Part::Permille(permille),
            _ => {
                return Err(Status::invalid_argument(
                    "give a share of up to 1000 thousandths, or paths, not both",
                ));
            }
        };
        let name = parse_name(&name)?;
        let open = self.agent.open(&name, None).await.map_err(status)?;
        let (events, receiver) = mpsc::channel(1);
        tokio::spawn(tasks::warm(open, part, events));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn verify_dataset(
        &self,
        request: Request<VerifyDatasetRequest>,
    ) -> Result<Response<Stream<VerifyDatasetEvent>>, Status> {
        let name = parse_name(&request.into_inner().name)?;
        let open = self.agent.open(&name, None).await.map_err(status)?;
        let (events, receiver) = mpsc::channel(1);
        tokio::spawn(tasks::verify(open, events));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn evict_dataset(
        &self,
        request: Request<EvictDatasetRequest>,
    ) -> Result<Response<EvictDatasetResponse>, Status> {
        let EvictDatasetRequest { name, version } = request.into_inner();
        let name = parse_name(&name)?;
        let evicted = keep::evict(&self.agent, &name, &version).await?;
        Ok(Response::new(evicted))
    }

    async fn pin_dataset(
        &self,
        request: Request<PinDatasetRequest>,
    ) -> Result<Response<PinDatasetResponse>, Status> {
        let PinDatasetRequest {
            name,
            version,
            pinned,
        } = request.into_inner();
        let name = parse_name(&name)?;
        let done = keep::pin(&self.agent, &name, &version, pinned).await?;
        Ok(Response::new(done))
    }

    async fn get_counters(
        &self,
        _: Request<GetCountersRequest>,
    ) -> Result<Response<Counters>, Status> {
        let cache = self.agent.counters();
        let fabric = self.agent.fabric().map(|fabric| {
            let counters = fabric.counters();
            FabricCounters {
                kind: counters.kind.to_string(),
                device: self.device.clone(),
                requests_sent: counters.requests_sent,
                requests_served: counters.payloads_sent,
                bytes_received: counters.payload_bytes_received,
                bytes_sent: counters.payload_bytes_sent,
            }
        });
        Ok(Response::new(Counters {
            origin_bytes: cache.origin_bytes,
            origin_requests: cache.origin_requests,
            peer_bytes: cache.peer_in_bytes,
            peer_requests: cache.peer_in_chunks + cache.peer_failures,
            corrupt_blocks: cache.corrupt_blocks + cache.peer_corrupt_chunks,
            fabric,
        }))
    }
}

/// Registers, telling how far it is; stops listing when nobody listens any more.
async fn register(
    agent: Agent,
    name: DatasetName,
    origin: OriginUrl,
    readers: registry::Readers,
    events: mpsc::Sender<Result<RegisterDatasetEvent, Status>>,
) {
    let event = |event| Ok(RegisterDatasetEvent { event: Some(event) });
    let progress = ListProgress::default();
    let work = agent.register_for(&name, &origin, readers, &progress);
    let tell = async {
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            let so_far = RegisterProgress {
                entries: progress.entries(),
                bytes: progress.bytes(),
            };
            if events.send(event(Event::Progress(so_far))).await.is_err() {
                progress.cancel();
            }
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = tell => return,
    };
    let last = match outcome {
        Ok(record) => {
            tracing::info!(dataset = %name, version = %record.version.short(), "registered");
            event(Event::Registered(dataset(record)))
        }
        Err(error) => {
            tracing::warn!(dataset = %name, %error, "cannot register a dataset");
            Err(status(error))
        }
    };
    // Whoever asked may have left meanwhile; the dataset is registered all the same.
    let _ = events.send(last).await;
}

fn parse_name(text: &str) -> Result<DatasetName, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(format!("{error}")))
}

fn parse_readers(readers: Readers) -> Result<registry::Readers, Status> {
    if readers.all {
        return Ok(registry::Readers::All);
    }
    let namespaces = readers.namespaces.iter().map(|name| {
        Namespace::parse(name).ok_or_else(|| {
            let name: String = name.chars().take(70).collect();
            Status::invalid_argument(format!(
                "{name:?} is not a namespace: use 1 to 63 of a-z 0-9 - with a letter or digit at \
                 both ends"
            ))
        })
    });
    Ok(registry::Readers::Only(
        namespaces.collect::<Result<_, _>>()?,
    ))
}

fn readers(record: &DatasetRecord) -> Readers {
    let listed = record.namespaces.iter().flatten();
    Readers {
        all: record.namespaces.is_none(),
        namespaces: listed.map(ToString::to_string).collect(),
    }
}

fn dataset(record: DatasetRecord) -> Dataset {
    Dataset {
        readers: Some(readers(&record)),
        name: record.name.to_string(),
        origin: record.origin.to_string(),
        version: record.version.to_string(),
    }
}

fn status(error: AgentError) -> Status {
    let said = error.to_string();
    match error {
        AgentError::UnknownDataset(_)
        | AgentError::UnknownVersion { .. }
        | AgentError::NotAVersion { .. } => Status::not_found(said),
        AgentError::Kept { .. } => Status::failed_precondition(said),
        AgentError::Origin(_) | AgentError::Listing { .. } | AgentError::Manifest(_) => {
            Status::failed_precondition(said)
        }
        _ => Status::unavailable(said),
    }
}
