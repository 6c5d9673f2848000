//! `trackbed crds`: the definitions of the custom resources, for `kubectl apply -f -` or as files.

use crate::exit::Failure;
use crate::output::print;
use clap::Args;
use std::path::PathBuf;

/// Print the CustomResourceDefinitions that `trackbed node --kubernetes` needs
#[derive(Args)]
pub(crate) struct CrdsArgs {
    /// Write them into this folder, a file for each, instead of printing them
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

/// Prints or writes them.
pub(crate) fn run(args: &CrdsArgs) -> Result<(), Failure> {
    let manifests = trackbed_controller::api::manifests().map_err(Failure::failed)?;
    let Some(folder) = &args.write else {
        let texts: Vec<_> = manifests.into_iter().map(|(_, text)| text).collect();
        return print(texts.join("---\n").trim_end());
    };
    for (file, text) in manifests {
        let path = folder.join(file);
        std::fs::write(&path, text).map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    Ok(())
}
