//! The role `trackbed dataset`: what an administrator asks of the node on this machine, over its
//! admin socket.

mod cluster;
mod keep;
mod verify;
mod warm;

use crate::exit::Failure;
use crate::output::{Output, print};
use crate::size::Size;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use trackbed_proto::node::v1::node_control_client::NodeControlClient;
use trackbed_proto::node::v1::register_dataset_event::Event;
use trackbed_proto::node::v1::{
    Dataset, DatasetStatus, GetDatasetStatusRequest, ListDatasetsRequest, Readers,
    RegisterDatasetRequest,
};

const AFTER_HELP: &str = "\
Examples:
  export TRACKBED_ADMIN_SOCKET=/mnt/nvme/trackbed/admin.sock
  trackbed dataset register cats file:///data/cats
  trackbed dataset register dogs 's3://bucket/dogs?region=eu-central-1'
  trackbed dataset register faces s3://bucket/faces --namespace team-a,team-b
  trackbed dataset ls
  trackbed dataset status cats --output json
  trackbed dataset warm cats
  trackbed dataset verify cats
  trackbed dataset create --kubernetes --warm team-a/cats s3://bucket/cats
  trackbed dataset status --kubernetes team-a/cats
  trackbed dataset pin cats
  trackbed dataset evict dogs

Registering again makes a new version of what the origin has by then. Credentials are never part of
a URL: credentials=env, the default, takes them from the node's environment.";

/// Register datasets, bring them to this node, see how much of them is here, check it, and keep or
/// evict it
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DatasetArgs {
    /// The admin socket of the node
    #[arg(
        long,
        env = "TRACKBED_ADMIN_SOCKET",
        global = true,
        value_name = "SOCKET"
    )]
    admin_socket: Option<PathBuf>,

    /// Create, list and look at Dataset objects of the Kubernetes API, named NAMESPACE/NAME, instead of
    /// datasets of a node's registry
    #[arg(long, env = "TRACKBED_KUBERNETES", global = true)]
    kubernetes: bool,

    /// What to print on stdout
    #[arg(long, value_enum, default_value_t = Output::Table, global = true, value_name = "FORM")]
    output: Output,

    #[command(subcommand)]
    command: DatasetCommand,
}

#[derive(Subcommand)]
enum DatasetCommand {
    /// Make a new dataset of what an origin has, and warm it if asked to
    Create {
        /// The dataset's name: 1 to 128 of a-z 0-9 . _ -; with --kubernetes NAMESPACE/NAME
        name: String,
        /// Where its bytes come from, as of `register`
        origin: String,
        /// Let only pods of these namespaces read it; with --kubernetes, these beside its own
        /// [default: all; with --kubernetes, none]
        #[arg(long = "namespace", value_name = "NAMESPACE", value_delimiter = ',')]
        namespaces: Vec<String>,
        #[command(flatten)]
        object: cluster::ObjectArgs,
    },
    /// Make a version of what an origin has now, and let the name mean it
    Register {
        /// The dataset's name: 1 to 128 of a-z 0-9 . _ -
        name: String,
        /// Where its bytes come from: file:///path or s3://bucket/prefix?endpoint=…&region=…
        origin: String,
        /// Let only pods of these namespaces read it [default: as before; all, if it is new]
        #[arg(long = "namespace", value_name = "NAMESPACE", value_delimiter = ',')]
        namespaces: Vec<String>,
        /// Let pods of all namespaces read it
        #[arg(long, conflicts_with = "namespaces")]
        all_namespaces: bool,
    },
    /// All datasets of the registry
    Ls,
    /// How much of a dataset's current version is on this node
    Status {
        /// The dataset's name
        name: String,
    },
    /// Bring a dataset's current version to this node's disk before anyone reads it
    Warm {
        /// The dataset's name
        name: String,
        /// Bring a share of it, in percent, from the beginning of the path order
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
        share: Option<u32>,
        /// Bring the files and folders that this file names, one path a line; - for stdin
        #[arg(long, value_name = "FILE", conflicts_with = "share")]
        list: Option<PathBuf>,
    },
    /// Give up what this node holds of a dataset, to free its disk: of one version, or of all
    ///
    /// Not what is pinned, mounted, being read or being filled here. It comes again when it is read.
    Evict {
        /// The dataset's name, or its name, an @ and the first digits of a version
        #[arg(value_name = "NAME[@VERSION]")]
        name: String,
    },
    /// Never evict a version from this node: the current one, if none is named
    Pin {
        /// The dataset's name, or its name, an @ and the first digits of a version
        #[arg(value_name = "NAME[@VERSION]")]
        name: String,
    },
    /// Evict a version again when space is needed
    Unpin {
        /// The dataset's name, or its name, an @ and the first digits of a version
        #[arg(value_name = "NAME[@VERSION]")]
        name: String,
    },
    /// Check everything of a dataset's current version that is on this node, now, and mend what is
    /// damaged
    Verify {
        /// The dataset's name
        name: String,
    },
}

/// Asks the node, or the API server, and prints the answer.
pub(crate) fn run(args: DatasetArgs) -> Result<(), Failure> {
    if args.kubernetes {
        return in_cluster(args);
    }
    let socket = args.admin_socket.ok_or_else(|| {
        Failure::usage(
            "which node? Give its --admin-socket (or TRACKBED_ADMIN_SOCKET): it lies in the \
             node's cache folder unless configured otherwise",
        )
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start a runtime: {error}")))?;
    let text = runtime.block_on(async {
        let client = connect(&socket).await?;
        match args.command {
            DatasetCommand::Create {
                name,
                origin,
                namespaces,
                object,
            } => {
                if let Some(flag) = object.only_for_objects() {
                    return Err(Failure::usage(format!(
                        "{flag} is for Dataset objects: give --kubernetes too"
                    )));
                }
                create(client, name, origin, namespaces, object.warm, args.output).await
            }
            DatasetCommand::Register {
                name,
                origin,
                namespaces,
                all_namespaces,
            } => {
                let readers = (all_namespaces || !namespaces.is_empty()).then_some(Readers {
                    all: all_namespaces,
                    namespaces,
                });
                let request = RegisterDatasetRequest {
                    name,
                    origin,
                    readers,
                };
                register(client, request, args.output).await
            }
            DatasetCommand::Ls => list(client, args.output).await,
            DatasetCommand::Status { name } => status(client, name, args.output).await,
            DatasetCommand::Warm { name, share, list } => {
                let request = warm::request(name, share, list.as_deref())?;
                warm::run(client, request, args.output).await
            }
            DatasetCommand::Evict { name } => keep::evict(client, name, args.output).await,
            DatasetCommand::Pin { name } => keep::pin(client, name, true, args.output).await,
            DatasetCommand::Unpin { name } => keep::pin(client, name, false, args.output).await,
            DatasetCommand::Verify { name } => verify::run(client, name, args.output).await,
        }
    })?;
    print(&text)
}

fn in_cluster(args: DatasetArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start a runtime: {error}")))?;
    let text = runtime.block_on(async {
        match args.command {
            DatasetCommand::Create {
                name,
                origin,
                namespaces,
                object,
            } => cluster::create(&name, origin, namespaces, &object, args.output).await,
            DatasetCommand::Ls => cluster::list(args.output).await,
            DatasetCommand::Status { name } => cluster::status(&name, args.output).await,
            _ => Err(Failure::usage(
                "--kubernetes is for create, ls and status: what a dataset shall be is in its object \
                 (kubectl edit dataset), the rest is asked of a node by --admin-socket",
            )),
        }
    })?;
    print(&text)
}

type Client = NodeControlClient<Channel>;

/// Registers a dataset that is not there yet, and warms it.
async fn create(
    mut client: Client,
    name: String,
    origin: String,
    namespaces: Vec<String>,
    percent: Option<u32>,
    output: Output,
) -> Result<String, Failure> {
    let known = client
        .list_datasets(ListDatasetsRequest {})
        .await
        .map_err(refused)?;
    if known
        .into_inner()
        .datasets
        .iter()
        .any(|dataset| dataset.name == name)
    {
        return Err(Failure::usage(format!(
            "there is a dataset {name} already: `trackbed dataset register` makes a new version of it"
        )));
    }
    let request = RegisterDatasetRequest {
        name: name.clone(),
        origin,
        readers: (!namespaces.is_empty()).then_some(Readers {
            all: false,
            namespaces,
        }),
    };
    let said = register(client.clone(), request, output).await?;
    if let Some(percent) = percent {
        let request = warm::request(name, Some(percent), None)?;
        warm::run(client, request, output).await?;
    }
    Ok(said)
}

async fn connect(socket: &Path) -> Result<Client, Failure> {
    let refuse = |why: &dyn std::fmt::Display| {
        Failure::failed(format!(
            "no node answers on {}: {why}: check that `trackbed node` runs, and that this user is \
             the one it runs as",
            socket.display()
        ))
    };
    let connecting = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .map_err(|error| refuse(&error))?;
    let channel = connecting.connect().await.map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        refuse(&source.unwrap_or_else(|| error.to_string()))
    })?;
    Ok(NodeControlClient::new(channel))
}

fn refused(status: Status) -> Failure {
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition => {
            Failure::usage(status.message())
        }
        _ => Failure::failed(status.message()),
    }
}

async fn register(
    mut client: Client,
    request: RegisterDatasetRequest,
    output: Output,
) -> Result<String, Failure> {
    let mut events = client
        .register_dataset(request)
        .await
        .map_err(refused)?
        .into_inner();
    while let Some(event) = events.message().await.map_err(refused)? {
        match event.event {
            Some(Event::Progress(so_far)) => {
                tracing::info!(entries = so_far.entries, bytes = so_far.bytes, "listing");
            }
            Some(Event::Registered(dataset)) => {
                return Ok(match output {
                    Output::Json => object(&dataset).to_string(),
                    Output::Table => format!("{} is now version {}", dataset.name, dataset.version),
                });
            }
            None => {}
        }
    }
    Err(Failure::failed(
        "the node broke off the registration: its log says why",
    ))
}

async fn list(mut client: Client, output: Output) -> Result<String, Failure> {
    let answer = client
        .list_datasets(ListDatasetsRequest {})
        .await
        .map_err(refused)?;
    let datasets = answer.into_inner().datasets;
    if output == Output::Json {
        return Ok(serde_json::Value::from_iter(datasets.iter().map(object)).to_string());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["dataset", "version", "namespaces", "origin"]);
    for dataset in datasets {
        let short: String = dataset.version.chars().take(12).collect();
        let readers = match namespaces(&dataset) {
            None => "all".to_owned(),
            Some([]) => "none".to_owned(),
            Some(some) => some.join(","),
        };
        table.add_row([dataset.name, short, readers, dataset.origin]);
    }
    Ok(table.to_string())
}

async fn status(mut client: Client, name: String, output: Output) -> Result<String, Failure> {
    let request = GetDatasetStatusRequest { name };
    let status = client
        .get_dataset_status(request)
        .await
        .map_err(refused)?
        .into_inner();
    let dataset = status.dataset.clone().unwrap_or_default();
    let DatasetStatus {
        files,
        bytes,
        chunks,
        chunks_present,
        bytes_present,
        native,
        native_from,
        not_native_because,
        versions,
        ..
    } = status;
    let shown = match native {
        true if native_from == "erofs" => "natively, from an EROFS image".to_owned(),
        true => "natively".to_owned(),
        false => format!("by FUSE ({not_native_because})"),
    };
    Ok(match output {
        Output::Json => json!({
            "dataset": object(&dataset), "files": files, "bytes": bytes, "chunks": chunks,
            "chunks_present": chunks_present, "bytes_present": bytes_present,
            "native": native, "native_from": native_from, "not_native_because": not_native_because,
            "versions": versions.iter().map(keep::object).collect::<Vec<_>>(),
        })
        .to_string(),
        Output::Table => format!(
            "{} at version {}\n{files} files, {}\non this node: {} ({chunks_present} of {chunks} \
             chunks)\nshown to pods {shown}{}",
            dataset.name,
            dataset.version,
            Size(bytes),
            Size(bytes_present),
            keep::table(&versions),
        ),
    })
}

/// The namespaces whose pods may read it; `None` if all may.
fn namespaces(dataset: &Dataset) -> Option<&[String]> {
    let readers = dataset.readers.as_ref().filter(|readers| !readers.all);
    readers.map(|readers| readers.namespaces.as_slice())
}

fn object(dataset: &Dataset) -> serde_json::Value {
    json!({
        "name": dataset.name, "origin": dataset.origin, "version": dataset.version,
        "namespaces": namespaces(dataset),
    })
}
