//! The CSI driver that mounts cached datasets in pods.
