//! gRPC interfaces Trackbed speaks: kubelet's, and its own peer and node control.
//!
//! The modules mirror the protobuf packages; everything in them is generated at build time from
//! the files under `proto/`, client and server both. Beside them, [`endpoint`] has the sockets that they
//! are served on.

pub mod endpoint;

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

/// How a device plugin and kubelet speak.
pub mod deviceplugin {
    /// Version v1beta1, the one there is.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated; the .proto file has the documentation"
    )]
    pub mod v1beta1 {
        tonic::include_proto!("v1beta1");
    }
}

/// Which devices kubelet has given to which pods.
pub mod podresources {
    /// Version 1, as far as it is in use.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated; the .proto file has the documentation"
    )]
    pub mod v1 {
        tonic::include_proto!("v1");
    }
}

/// How a plug-in makes itself known to kubelet.
pub mod pluginregistration {
    /// Version 1 of the registration.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated; the .proto file has the documentation"
    )]
    pub mod v1 {
        tonic::include_proto!("pluginregistration");
    }
}

/// What Trackbed nodes say to each other.
pub mod peer {
    /// Version 1 of the peers' control.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated; the .proto file has the documentation"
    )]
    pub mod v1 {
        tonic::include_proto!("trackbed.peer.v1");
    }
}

/// What an administrator asks of a node.
pub mod node {
    /// Version 1 of a node's control.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated; the .proto file has the documentation"
    )]
    pub mod v1 {
        tonic::include_proto!("trackbed.node.v1");
    }
}
