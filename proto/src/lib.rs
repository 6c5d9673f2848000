//! gRPC interfaces Trackbed speaks: CSI and its own peer and node control.
//!
//! The modules mirror the protobuf packages; everything in them is generated at build time from
//! the files under `proto/`, client and server both.

/// The Container Storage Interface, by which kubelet asks for volumes.
pub mod csi {
    /// Version 1 of CSI: the services and messages in use, with the specification's numbers.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated; the .proto file has the documentation"
    )]
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }

    mod redact;
}
