//! `trackbed dataset verify`: a bar while the node checks, then what it found. The exit status says
//! whether everything is right.

use super::{Client, refused};
use crate::exit::Failure;
use crate::output::Output;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use trackbed_proto::node::v1::verify_dataset_event::Event;
use trackbed_proto::node::v1::{VerifyDatasetRequest, VerifyReport};

pub(super) async fn run(
    mut client: Client,
    name: String,
    output: Output,
) -> Result<String, Failure> {
    let request = VerifyDatasetRequest { name: name.clone() };
    let events = client.verify_dataset(request).await.map_err(refused)?;
    let mut events = events.into_inner();
    // Drawn on stderr, and only if that is a terminal.
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("verifying {msg} {bar:30} {bytes}/{total_bytes}, {eta} left")
            .expect("the template is a constant"),
    );
    bar.set_message(name.clone());
    let report = loop {
        match events.message().await.map_err(refused)? {
            None => {
                return Err(Failure::failed(
                    "the node broke off the verification: its log says why",
                ));
            }
            Some(event) => match event.event {
                Some(Event::Progress(so_far)) => {
                    bar.set_length(so_far.bytes_present);
                    bar.set_position(so_far.bytes);
                }
                Some(Event::Report(report)) => break report,
                None => {}
            },
        }
    };
    bar.finish_and_clear();
    let VerifyReport {
        chunks,
        mended,
        lost,
        why,
    } = report;
    if lost > 0 {
        return Err(Failure::failed(format!(
            "{name}: {lost} of {chunks} chunks are damaged on this node's disk or gone from it, and \
             could not be put right ({mended} could): {}",
            if why.is_empty() {
                "the disk did not take them; the node's log says why"
            } else {
                &why
            }
        )));
    }
    Ok(match output {
        Output::Json => json!({
            "dataset": name, "chunks": chunks, "mended": mended, "lost": lost,
        })
        .to_string(),
        Output::Table if mended == 0 => format!("{name}: all {chunks} chunks here are right"),
        Output::Table => format!(
            "{name}: {mended} of {chunks} chunks were damaged on this node's disk and are right \
             again: look at the disk's health"
        ),
    })
}
