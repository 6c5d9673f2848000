//! What takes a while on one dataset, telling how far it is meanwhile.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;
use trackbed_cache::OpenVersion;
use trackbed_cache::open::VerifyProgress as Progress;
use trackbed_proto::node::v1::verify_dataset_event::Event;
use trackbed_proto::node::v1::{VerifyDatasetEvent, VerifyProgress, VerifyReport};

/// How often it is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Verifies a version; ends when nobody listens any more.
pub(super) async fn verify(
    open: Arc<OpenVersion>,
    events: mpsc::Sender<Result<VerifyDatasetEvent, Status>>,
) {
    let event = |event| Ok(VerifyDatasetEvent { event: Some(event) });
    let progress = Progress::default();
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
