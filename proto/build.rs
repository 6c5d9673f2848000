//! Compiles the `.proto` files to Rust: `protox` parses them, so no `protoc` has to be installed.

use std::error::Error;

/// Every interface in use, relative to [`ROOT`]. A new one needs a line here and a module in
/// `src/lib.rs`.
const PROTOS: &[&str] = &[
    "csi/v1/csi.proto",
    "deviceplugin/v1beta1/api.proto",
    "pluginregistration/v1/api.proto",
    "podresources/v1/api.proto",
    "trackbed/peer/v1/peer.proto",
    "trackbed/node/v1/node.proto",
];

const ROOT: &str = "proto";

/// Messages that carry credentials: what is generated has no `Debug`, and `src/lib.rs` gives them
/// one that hides the credentials.
const SECRET_BEARERS: &[&str] = &[
    "csi.v1.NodeStageVolumeRequest",
    "csi.v1.NodePublishVolumeRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let descriptors = protox::compile(PROTOS, [ROOT])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .skip_debug(SECRET_BEARERS)
        .compile_fds(descriptors)?;
    Ok(())
}
