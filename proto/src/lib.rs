//! gRPC interfaces Trackbed speaks: CSI and its own peer and node control.
