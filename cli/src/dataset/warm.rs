//! `trackbed dataset warm`: a bar while the node brings a dataset here.

use super::{Client, refused};
use crate::exit::Failure;
use crate::output::Output;
use crate::size::Size;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::Read;
use std::path::Path;
use trackbed_proto::node::v1::WarmDatasetRequest;

/// The longest list of paths, in bytes: one message to the node.
const MAX_LIST_BYTES: u64 = 3 << 20;

/// What to ask of the node.
pub(super) fn request(
    name: String,
    share: Option<u32>,
    list: Option<&Path>,
) -> Result<WarmDatasetRequest, Failure> {
    Ok(WarmDatasetRequest {
        name,
        permille: share.unwrap_or(0) * 10,
        paths: list.map_or(Ok(Vec::new()), read_list)?,
    })
}

fn read_list(file: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let refuse =
        |why: &dyn std::fmt::Display| Failure::usage(format!("--list {}: {why}", file.display()));
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(|error| refuse(&error))?)
    };
    let mut text = Vec::new();
    let read = source.take(MAX_LIST_BYTES + 1).read_to_end(&mut text);
    read.map_err(|error| refuse(&error))?;
    if text.len() as u64 > MAX_LIST_BYTES {
        return Err(refuse(
            &"it has more than 3 MiB: name folders, or warm in several parts",
        ));
    }
    let lines = text.split(|&byte| byte == b'\n');
    let paths: Vec<_> = lines
        .filter(|line| !line.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    match paths.is_empty() {
        true => Err(refuse(&"it names no path")),
        false => Ok(paths),
    }
}

pub(super) async fn run(
    mut client: Client,
    request: WarmDatasetRequest,
    output: Output,
) -> Result<String, Failure> {
    let name = request.name.clone();
    let told = client.warm_dataset(request).await.map_err(refused)?;
    let mut told = told.into_inner();
    // Drawn on stderr, and only if that is a terminal.
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("warming {msg} {bar:30} {bytes}/{total_bytes}, {eta} left")
            .expect("the template is a constant"),
    );
    bar.set_message(name.clone());
    let mut brought = 0;
    while let Some(so_far) = told.message().await.map_err(refused)? {
        bar.set_length(so_far.bytes_missing);
        bar.set_position(so_far.bytes);
        brought = so_far.bytes;
    }
    bar.finish_and_clear();
    Ok(match output {
        Output::Json => json!({ "dataset": name, "bytes_brought": brought }).to_string(),
        Output::Table => format!(
            "{name}: {} brought here; all that was asked for is here",
            Size(brought)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_a_path_a_line_and_an_empty_one_is_refused() {
        let list = tempfile::NamedTempFile::new().unwrap();
        assert!(request("d".into(), None, Some(list.path())).is_err());
        std::fs::write(list.path(), "a/b\n\nc d\n").unwrap();
        let asked = request("d".into(), None, Some(list.path())).unwrap();
        assert_eq!(asked.paths, [b"a/b".to_vec(), b"c d".to_vec()]);
        assert_eq!(asked.permille, 0);
        let asked = request("d".into(), Some(25), None).unwrap();
        assert_eq!((asked.permille, asked.paths.len()), (250, 0));
    }
}
