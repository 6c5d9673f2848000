//! The registry kept as files, through its public interface.

use std::fs;
use std::path::Path;

use trackbed_cache::Digest;
use trackbed_cache::registry::{DatasetName, DatasetRecord, FileRegistry, Registry, RegistryError};

const ONE: &str = r#"{"members": [{"name": "a", "control": "127.0.0.1:7440"}]}"#;
const TWO: &str = r#"{"members": [{"name": "a", "control": "127.0.0.1:7440"},
    {"name": "b", "control": "127.0.0.1:7441"}]}"#;

fn registry(members: &str) -> (tempfile::TempDir, Result<FileRegistry, RegistryError>) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("members.json"), members).expect("writes");
    let registry = FileRegistry::open(folder.path());
    (folder, registry)
}

fn record(name: &str, content: &str) -> DatasetRecord {
    DatasetRecord::new(
        name.parse().expect("a name"),
        "file:///data/a".parse().expect("a URL"),
        Digest::of(content.as_bytes()),
    )
}

fn put(registry: &FileRegistry, record: &DatasetRecord) -> Result<(), RegistryError> {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(registry.put_dataset(record))
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("datasets")).expect("a folder");
    entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect()
}

#[test]
fn a_member_added_to_the_file_is_seen_without_a_restart() {
    let (folder, registry) = registry(ONE);
    let registry = registry.expect("opens");
    assert_eq!(registry.members().expect("members").len(), 1);
    fs::write(folder.path().join("members.json"), TWO).expect("writes");
    assert_eq!(registry.members().expect("members").len(), 2);
}

#[test]
fn a_mistake_in_a_later_edit_leaves_the_members_as_they_were() {
    let (folder, registry) = registry(TWO);
    let registry = registry.expect("opens");
    for _ in 0..2 {
        fs::write(folder.path().join("members.json"), "{\"members\": [").expect("writes");
        assert_eq!(registry.members().expect("the old ones").len(), 2);
    }
    fs::write(folder.path().join("members.json"), ONE).expect("writes");
    assert_eq!(registry.members().expect("members").len(), 1);
}

#[test]
fn a_mistake_at_the_start_is_an_error_that_names_file_line_and_form() {
    let (folder, registry) =
        registry("{\"members\": [\n{\"name\": \"A b\", \"control\": \"h:1\"}]}");
    let error = registry.err().expect("refused").to_string();
    let path = folder.path().join("members.json");
    for part in [
        &path.display().to_string(),
        "line 2",
        "DNS label",
        "write {",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let empty = tempfile::tempdir().expect("a folder");
    let error = FileRegistry::open(empty.path()).err().expect("refused");
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[test]
fn a_dataset_put_by_one_node_is_seen_by_another_and_replaced_whole() {
    let (folder, registry) = registry(ONE);
    let registry = registry.expect("opens");
    let other = FileRegistry::open(folder.path()).expect("opens");
    let name: DatasetName = "train.v1".parse().expect("a name");
    assert_eq!(other.dataset(&name).expect("reads"), None);
    for content in ["first", "second"] {
        let record = record("train.v1", content);
        put(&registry, &record).expect("writes");
        assert_eq!(other.dataset(&name).expect("reads"), Some(record.clone()));
        assert_eq!(other.datasets().expect("reads"), vec![record]);
    }
    assert_eq!(files(folder.path()), ["train.v1.json"]);
}

#[test]
fn a_registry_that_cannot_be_written_says_which_file_and_keeps_no_rest() {
    let (folder, registry) = registry(ONE);
    let registry = registry.expect("opens");
    fs::create_dir(folder.path().join("datasets/train.json")).expect("in the way");
    let error = put(&registry, &record("train", "x"))
        .expect_err("refused")
        .to_string();
    assert!(error.contains("train.json"), "{error}");
    assert_eq!(files(folder.path()), ["train.json"]);
}

#[test]
fn a_dataset_file_that_is_broken_hides_no_other_dataset() {
    let (folder, registry) = registry(ONE);
    let registry = registry.expect("opens");
    put(&registry, &record("good", "x")).expect("writes");
    fs::write(folder.path().join("datasets/bad.json"), "{").expect("writes");
    let copy = fs::read(folder.path().join("datasets/good.json")).expect("reads");
    fs::write(folder.path().join("datasets/moved.json"), copy).expect("writes");
    let names: Vec<_> = registry
        .datasets()
        .expect("reads")
        .into_iter()
        .map(|d| d.name)
        .collect();
    assert_eq!(names, ["good".parse().expect("a name")]);
    for name in ["bad", "moved"] {
        let error = registry
            .dataset(&name.parse().expect("a name"))
            .expect_err("broken");
        assert!(error.to_string().contains(name), "{error}");
    }
}
