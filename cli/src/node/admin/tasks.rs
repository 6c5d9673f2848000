//! What takes a while on one dataset, telling how far it is meanwhile.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;
use trackbed_cache::OpenVersion;
use trackbed_cache::open::{self, Part, WarmError};
use trackbed_proto::node::v1::verify_dataset_event::Event;
use trackbed_proto::node::v1::{VerifyDatasetEvent, VerifyProgress, VerifyReport, WarmProgress};

/// How often it is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Verifies a version; ends when nobody listens any more.
pub(super) async fn verify(
    open: Arc<OpenVersion>,
    events: mpsc::Sender<Result<VerifyDatasetEvent, Status>>,
) {
    let event = |event| Ok(VerifyDatasetEvent { event: Some(event) });
    let progress = open::VerifyProgress::default();
    let bytes_present = open.progress().bytes_present;
    let tell = async {
        loop {
            let so_far = VerifyProgress {
                bytes: progress.bytes(),
                bytes_present,
            };
            if events.send(event(Event::Progress(so_far))).await.is_err() {
                return;
            }
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
    };
    let report = tokio::select! {
        report = open.verify(&progress) => report,
        () = tell => return,
    };
    let report = VerifyReport {
        chunks: report.chunks.into(),
        mended: report.mended.into(),
        lost: report.lost.into(),
        why: report.why.map_or(String::new(), |why| why.to_string()),
    };
    // Whoever asked may have left meanwhile; what was found is in the log too.
    let _ = events.send(event(Event::Report(report))).await;
}

/// Brings a part of a version here; ends when nobody listens any more.
pub(super) async fn warm(
    open: Arc<OpenVersion>,
    part: Part,
    events: mpsc::Sender<Result<WarmProgress, Status>>,
) {
    let progress = open::WarmProgress::default();
    let so_far = || {
        let (bytes, bytes_missing) = progress.bytes();
        Ok(WarmProgress {
            bytes,
            bytes_missing,
        })
    };
    let tell = async {
        while events.send(so_far()).await.is_ok() {
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
    };
    let warmed = tokio::select! {
        warmed = open.warm_part(&part, &progress) => warmed,
        () = tell => return,
    };
    let last = warmed.map_err(|error| match error {
        WarmError::NoSuchPath { .. } => Status::not_found(error.to_string()),
        WarmError::NotKept { .. } => Status::resource_exhausted(error.to_string()),
        WarmError::Fills { .. } => Status::unavailable(error.to_string()),
    });
    let last = last.and_then(|_| so_far());
    // Whoever asked may have left meanwhile; what was brought is here.
    let _ = events.send(last).await;
}
