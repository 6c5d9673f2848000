//! The definitions that a cluster gets are those of the types that the agents read and write.

use std::path::Path;

#[test]
fn deploy_has_the_definitions_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let manifests = trackbed_controller::api::manifests().expect("they can be written");
    for (file, text) in &manifests {
        let found = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        assert!(
            found == *text,
            "deploy/crds/{file} is out of date: run `cargo run -p trackbed -- crds --write deploy/crds`"
        );
    }
    let files = std::fs::read_dir(&folder).expect("there").count();
    assert_eq!(
        files,
        manifests.len(),
        "a file in deploy/crds is of no type"
    );
}
