//! Writes `deploy/kustomize` anew: what `hack/render` runs.

use std::collections::BTreeMap;
use std::fs;

use trackbed_tests::manifests;

fn main() {
    let Some((helm, _)) = manifests::clients() else {
        std::process::exit(3);
    };
    let render = |profile: Option<&str>| {
        let rendered = manifests::helm(&helm, profile, &[]).unwrap_or_else(|why| {
            eprintln!("{why}");
            std::process::exit(1);
        });
        manifests::applied(rendered)
    };
    let overlays: BTreeMap<_, _> = manifests::profiles()
        .into_iter()
        .map(|name| (name.clone(), render(Some(&name))))
        .collect();
    let folder = manifests::folder().join("kustomize");
    // A profile that was removed leaves nothing.
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("removes the old files");
    }
    for (path, text) in manifests::files(&render(None), &overlays) {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("makes a folder");
        fs::write(path, text).expect("writes");
    }
}
