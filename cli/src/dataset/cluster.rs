//! `trackbed dataset … --kubernetes`: the same for Dataset objects, asked of the API server.

use crate::exit::Failure;
use crate::node::kubernetes::{connect, reason};
use crate::output::Output;
use crate::size::Size;
use clap::Args;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use trackbed_controller::api::{
    CredentialsReference, Dataset, DatasetSpec, DatasetStatus, READY, WARMED, WarmUp,
};

/// What only a Dataset object has.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct ObjectArgs {
    /// With --kubernetes: the Secret of the dataset's namespace that has the origin's credentials
    #[arg(long, value_name = "SECRET")]
    credentials_secret: Option<String>,

    /// With --kubernetes: the labels of the CacheNodes that shall warm it [default: all of them]
    #[arg(long, value_name = "LABEL=VALUE", value_delimiter = ',', value_parser = label)]
    warm_on: Vec<(String, String)>,

    /// With --kubernetes: a file or folder to warm, instead of all; may be given several times
    #[arg(long, value_name = "PATH", conflicts_with = "warm")]
    warm_path: Vec<String>,

    /// With --kubernetes: keep what is cached of it, whatever else needs the space
    #[arg(long)]
    pin: bool,

    /// Warm it: all of it, or a share in percent
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, default_missing_value = "100", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) warm: Option<u32>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (label, value) = text.split_once('=').ok_or("a label is LABEL=VALUE")?;
    Ok((label.to_owned(), value.to_owned()))
}

impl ObjectArgs {
    /// The first flag that only Dataset objects know, if one is given.
    pub(super) fn only_for_objects(&self) -> Option<&'static str> {
        let given = [
            ("--credentials-secret", self.credentials_secret.is_some()),
            ("--warm-on", !self.warm_on.is_empty()),
            ("--warm-path", !self.warm_path.is_empty()),
            ("--pin", self.pin),
        ];
        given
            .into_iter()
            .find(|(_, given)| *given)
            .map(|(flag, _)| flag)
    }

    fn warm_up(&self) -> Option<WarmUp> {
        let wanted = self.warm.is_some() || !self.warm_path.is_empty() || !self.warm_on.is_empty();
        let percent = self.warm.filter(|percent| *percent < 100);
        wanted.then(|| WarmUp {
            percent: percent.and_then(|percent| i32::try_from(percent).ok()),
            paths: (!self.warm_path.is_empty()).then(|| self.warm_path.clone()),
            node_selector: self.warm_on.iter().cloned().collect(),
        })
    }
}

/// A name as `NAMESPACE/NAME`, or in the namespace that the configuration has as its own.
async fn place(name: &str) -> Result<(Client, String, String), Failure> {
    let client = connect().await?;
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
        None => (client.default_namespace().to_owned(), name.to_owned()),
    };
    Ok((client, namespace, name))
}

fn failed(action: &str, error: &kube::Error) -> Failure {
    let sentence = format!("cannot {action}: {}", reason(error));
    match error {
        kube::Error::Api(status) if (400..500).contains(&status.code) => Failure::usage(sentence),
        _ => Failure::failed(format!(
            "{sentence}: check that the API server can be reached"
        )),
    }
}

/// Makes a Dataset object.
pub(super) async fn create(
    name: &str,
    origin: String,
    shared_with: Vec<String>,
    args: &ObjectArgs,
    output: Output,
) -> Result<String, Failure> {
    let (client, namespace, name) = place(name).await?;
    let spec = DatasetSpec {
        origin,
        credentials: args
            .credentials_secret
            .clone()
            .map(|secret_name| CredentialsReference { secret_name }),
        warm_up: args.warm_up(),
        pinned: args.pin,
        version: None,
        refresh: 0,
        shared_with,
    };
    let api: Api<Dataset> = Api::namespaced(client, &namespace);
    let made = api
        .create(&PostParams::default(), &Dataset::new(&name, spec))
        .await;
    let made =
        made.map_err(|error| failed(&format!("create Dataset {namespace}/{name}"), &error))?;
    Ok(match output {
        Output::Json => object(&made).to_string(),
        Output::Table => format!(
            "{namespace}/{name} is created; `trackbed dataset status --kubernetes {namespace}/{name}` says \
             how it is"
        ),
    })
}

/// Says how a Dataset object is.
pub(super) async fn status(name: &str, output: Output) -> Result<String, Failure> {
    let (client, namespace, name) = place(name).await?;
    let api: Api<Dataset> = Api::namespaced(client, &namespace);
    let found = api.get(&name).await;
    let found =
        found.map_err(|error| failed(&format!("get Dataset {namespace}/{name}"), &error))?;
    if output == Output::Json {
        return Ok(object(&found).to_string());
    }
    let status = found.status.clone().unwrap_or_default();
    let mut text = format!("{namespace}/{name}: {}", phase(&status));
    if let Some(version) = found.shown_version() {
        let bytes = status.bytes.and_then(|bytes| u64::try_from(bytes).ok());
        let size = bytes.map_or(String::new(), |bytes| format!(", {}", Size(bytes)));
        text += &format!("\nversion {version}{size}");
    }
    if let Some(volume) = &status.volume_dataset {
        text += &format!("\nfor volumes: dataset: {volume}");
    }
    if let (Some(warm), Some(selected)) = (status.warm_nodes, status.selected_nodes) {
        let cached = status.cached_percent.unwrap_or(0);
        text +=
            &format!("\nwarm on {warm} of {selected} nodes, {cached}% of all that is to be warmed");
    }
    let mut nodes: Vec<_> = status.nodes.iter().collect();
    nodes.sort_by_key(|it| &it.node);
    for node in nodes {
        let bytes = u64::try_from(node.bytes).unwrap_or(0);
        text += &format!("\n  {}: {} ({}%)", node.node, Size(bytes), node.percent);
    }
    let wanted = [READY, WARMED];
    let wrong = status.conditions.iter().filter(|condition| {
        wanted.contains(&condition.type_.as_str())
            && (condition.status != "True" || condition.reason == "RefreshFailed")
    });
    for condition in wrong {
        text += &format!(
            "\n{} ({}): {}",
            condition.type_, condition.reason, condition.message
        );
    }
    Ok(text)
}

/// Lists the Dataset objects of all namespaces.
pub(super) async fn list(output: Output) -> Result<String, Failure> {
    let api: Api<Dataset> = Api::all(connect().await?);
    let listed = api.list(&ListParams::default()).await;
    let listed = listed
        .map_err(|error| failed("list Datasets", &error))?
        .items;
    if output == Output::Json {
        return Ok(serde_json::Value::from_iter(listed.iter().map(object)).to_string());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["dataset", "phase", "version", "cached", "origin"]);
    for dataset in listed {
        let name = format!(
            "{}/{}",
            dataset.namespace().unwrap_or_default(),
            dataset.name_any()
        );
        let short: String = dataset
            .shown_version()
            .unwrap_or("")
            .chars()
            .take(12)
            .collect();
        let status = dataset.status.clone().unwrap_or_default();
        let cached = status
            .cached_percent
            .map_or(String::new(), |cached| format!("{cached}%"));
        table.add_row([name, phase(&status), short, cached, dataset.spec.origin]);
    }
    Ok(table.to_string())
}

fn phase(status: &DatasetStatus) -> String {
    let phase = status
        .phase
        .and_then(|phase| serde_json::to_value(phase).ok());
    let phase = phase.and_then(|phase| phase.as_str().map(str::to_owned));
    phase.unwrap_or_else(|| "Pending".to_owned())
}

fn object(dataset: &Dataset) -> serde_json::Value {
    json!({ "namespace": dataset.namespace(), "name": dataset.name_any(), "spec": dataset.spec,
        "status": dataset.status })
}
