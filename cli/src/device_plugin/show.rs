//! What is offered, for people and scripts.

use super::lock::is_running;
use crate::exit::Failure;
use crate::output::{Output, print};
use crate::rdma::{print_json, table};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use trackbed_deviceplugin::allocate::{Health, Shown};
use trackbed_deviceplugin::config::Config;
use trackbed_deviceplugin::discover::Discovery;
use trackbed_deviceplugin::offer::offers;
use trackbed_deviceplugin::port_watch::PortWatch;
use trackbed_deviceplugin::state::{PoolStatus, State};

/// What the plugin that runs has written for `trackbed device-plugin status`.
const STATUS: &str = "status.json";
/// How often it is written at most.
const WRITE_EVERY: Duration = Duration::from_millis(500);

/// Keeps the file up to date that [`status`] reads.
pub(super) async fn keep_written(folder: &Path, state: &State) {
    let mut changes = state.changes();
    loop {
        changes.mark_unchanged();
        if let Err(error) = write(folder, &state.status()) {
            tracing::warn!(%error, folder = %folder.display(), "the status can't be written");
        }
        if changes.changed().await.is_err() {
            return;
        }
        // People look now and then; pods may come by the hundred.
        tokio::time::sleep(WRITE_EVERY).await;
    }
}

fn write(folder: &Path, status: &[PoolStatus]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut file, status)?;
    file.flush()?;
    file.persist(folder.join(STATUS))?;
    Ok(())
}

/// Prints what the plugin that runs has written.
pub(super) fn status(folder: &Path, output: Output) -> Result<(), Failure> {
    if !is_running(folder) {
        return Err(Failure::failed(format!(
            "no device plugin runs with the folder {}: start it with `trackbed device-plugin run`, or name \
             its folder with --state-dir",
            folder.display()
        )));
    }
    let path = folder.join(STATUS);
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("cannot read {}: {error}", path.display()))
    };
    let bytes = fs::read(&path).map_err(|error| failed(&error))?;
    let pools: Vec<PoolStatus> = serde_json::from_slice(&bytes).map_err(|error| failed(&error))?;
    show(&pools, output)?;
    let mut devices = pools.iter().flat_map(|pool| &pool.devices);
    if devices.any(|it| it.health != Health::Healthy) {
        return Err(Failure::silent(1));
    }
    Ok(())
}

/// Prints what would be offered of a machine.
pub(super) fn replay(config: &Config, root: &Path, output: Output) -> Result<(), Failure> {
    // Readable errors for a folder that is none.
    File::open(root)
        .map_err(|error| Failure::usage(format!("--root {}: {error}", root.display())))?;
    let found = Discovery::new(root).look().map_err(Failure::unable)?;
    let (sorted, overlaps) = config.sort(&found);
    if let Some(overlap) = overlaps.into_iter().next() {
        return Err(Failure::usage(overlap));
    }
    let (mut watched, now) = (PortWatch::new(root), Instant::now());
    let pools = sorted.iter().map(|sorted| PoolStatus {
        resource: config.resource(&sorted.pool.name),
        devices: offers(sorted, &mut watched, now)
            .into_iter()
            .map(|offer| Shown {
                id: offer.id,
                place: offer.place,
                health: offer.health,
                holder: None,
            })
            .collect(),
    });
    show(&pools.collect::<Vec<_>>(), output)
}

fn show(pools: &[PoolStatus], output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        return print_json(&pools);
    }
    let mut shown = table(&["RESOURCE", "DEVICE", "PCI", "NUMA", "HEALTH", "POD"]);
    for pool in pools {
        if pool.devices.is_empty() {
            shown.add_row([pool.resource.as_str(), "none", "", "", "", ""]);
        }
        for device in &pool.devices {
            let node = device.place.numa_node;
            let pod = device.holder.as_ref().map(|holder| match &holder.pod {
                Some(pod) => pod.to_string(),
                None => "not named yet".to_owned(),
            });
            shown.add_row([
                pool.resource.clone(),
                device.id.clone(),
                device.place.address.to_string(),
                node.map_or_else(|| "-".to_owned(), |node| node.to_string()),
                match &device.health {
                    Health::Healthy => "healthy".to_owned(),
                    Health::Unhealthy(why) => why.clone(),
                },
                pod.unwrap_or_else(|| "-".to_owned()),
            ]);
        }
    }
    print(&shown.to_string())
}
