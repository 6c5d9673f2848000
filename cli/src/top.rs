//! `trackbed top`: nodes, datasets, devices and jobs as they are now, in a terminal.
//!
//! Daemons are asked for their metrics, the API server for nodes and jobs ([`gather`]); what is shown is a
//! pure function of two rounds of answers ([`view`]), put into words ([`sections`]), drawn ([`screen`]) or
//! printed.

mod gather;
mod samples;
mod scrape;
mod screen;
mod sections;
mod target;
mod view;

use crate::exit::Failure;
use crate::node::engine;
use crate::node::kubernetes::connect;
use crate::output::{Output, print};
use crate::rdma::{print_json, table};
use clap::Args;
use gather::{Gatherer, Sources};
use sections::sections;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;
use target::{Ports, Target};
use tokio::sync::watch;
use view::{View, view};

const AFTER_HELP: &str = "\
Examples:
  trackbed top --kubernetes                   all nodes of the cluster, and its jobs
  trackbed top --registry /mnt/registry       the members of a registry
  trackbed top --metrics n1=10.0.0.1:7422,n2=10.0.0.2:7422
  trackbed top --kubernetes --once --output json | jq '.nodes[] | select(.trouble)'

Keys: Tab for the next table, arrows and page keys to move in it, q to end. Without a terminal it prints once.
Rates are of the time between two rounds of questions. docs/top.md says what each column is.";

/// Watch nodes, datasets, devices and jobs as they are now
///
/// Asks daemons for their metrics (--metrics-listen). A daemon that does not answer is shown with the reason,
/// and holds up no other.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TopArgs {
    /// Where a daemon, agent or device plugin, serves metrics; several separated by commas
    #[arg(
        long,
        env = "TRACKBED_METRICS",
        value_name = "[NAME=]HOST:PORT",
        value_delimiter = ','
    )]
    metrics: Vec<Target>,

    /// Ask the daemons of the members of this registry
    #[arg(long, env = "TRACKBED_REGISTRY", value_name = "FOLDER")]
    registry: Option<PathBuf>,

    /// Ask the daemons of the cluster's nodes, and the API server for its jobs, as KUBECONFIG says
    #[arg(long, env = "TRACKBED_KUBERNETES")]
    kubernetes: bool,

    /// The port of agents' metrics on the nodes of a registry or a cluster
    #[arg(long, value_name = "PORT", default_value_t = 7422)]
    agent_port: u16,

    /// The port of device plugins' metrics there
    #[arg(long, value_name = "PORT", default_value_t = 7423)]
    device_plugin_port: u16,

    /// From one round of questions to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    interval: u16,

    /// Ask twice, an interval apart, print what came of it, and end
    #[arg(long)]
    once: bool,

    /// What to print; JSON is printed once
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// Watches until a key or a signal ends it, or prints once.
pub(crate) fn run(args: TopArgs) -> Result<(), Failure> {
    if args.metrics.is_empty() && args.registry.is_none() && !args.kubernetes {
        return Err(Failure::usage(
            "which daemons? Give --kubernetes, --registry FOLDER, or --metrics HOST:PORT of some",
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let cluster = match args.kubernetes {
        true => Some(runtime.block_on(connect())?),
        false => None,
    };
    let gatherer = Gatherer::new(Sources {
        named: args.metrics,
        registry: args.registry,
        cluster,
        ports: Ports {
            agent: args.agent_port,
            device_plugin: args.device_plugin_port,
        },
    });
    let every = Duration::from_secs(args.interval.into());
    let once = args.once || args.output == Output::Json || !std::io::stdout().is_terminal();
    let done = if once {
        let view = runtime.block_on(twice(gatherer, every));
        print_view(&view, args.output)
    } else {
        let ending = runtime.block_on(async { engine::ending() })?;
        let (newest, news) = watch::channel(None);
        runtime.spawn(gather::go_on(gatherer, every, newest));
        screen::show(news, ending).map_err(|error| {
            Failure::unable(format!(
                "this terminal can't be drawn to: {error}: try --once"
            ))
        })
    };
    // A host name or a folder that is still being looked up is not waited for.
    runtime.shutdown_background();
    done
}

async fn twice(mut gatherer: Gatherer, apart: Duration) -> View {
    let before = gatherer.round().await;
    tokio::time::sleep(apart).await;
    view(&before, &gatherer.round().await)
}

fn print_view(view: &View, output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        return print_json(view);
    }
    let mut parts: Vec<String> = view.troubles.clone();
    for section in sections(view) {
        let mut table = table(section.header);
        for row in section.rows {
            table.add_row(row.cells);
        }
        parts.push(format!("{}  {}\n{table}", section.title, section.summary));
    }
    print(&parts.join("\n\n"))
}
