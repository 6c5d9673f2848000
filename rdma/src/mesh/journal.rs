//! What was measured, in a file to which each run appends: a JSON object a line.
//!
//! A line is written after it is true and synced before the next round begins, so that an interrupted
//! mesh goes on where it was. The last line may be cut; of several lines about a pair, the last counts.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::message::check_node;
use super::{Left, Mesh, MeshError, MeshPlan, Node, Pair};

/// The version of the file's form.
const VERSION: u32 = 1;
/// No line is longer.
const LONGEST: u64 = 64 << 10;
/// A file with more lines is refused: 4096 nodes with one rail have 8.4 million pairs.
const MOST_LINES: usize = 50_000_000;

#[derive(Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
enum Record {
    Mesh {
        version: u32,
        plan: MeshPlan,
    },
    Node(Node),
    Pair(Pair),
    Left(Left),
    /// A run begins: nodes that left in an earlier one may be back.
    Run,
}

/// The file, open for appending; or none, for a mesh that need not survive.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Locked: two coordinators would write into each other's lines.
    file: Option<Flock<File>>,
    mesh: Mesh,
    /// Where each pair is in the mesh.
    places: HashMap<(usize, usize, usize), usize>,
    pending: Vec<u8>,
}

impl Journal {
    /// A mesh that is kept in memory only.
    pub fn in_memory(plan: MeshPlan) -> Journal {
        Journal {
            path: PathBuf::new(),
            file: None,
            mesh: empty(plan),
            places: HashMap::new(),
            pending: Vec::new(),
        }
    }

    /// Opens or begins a file. What it holds must have been measured by the same plan.
    pub fn open(path: &Path, plan: MeshPlan) -> Result<Journal, MeshError> {
        let failed = |reason: String| MeshError::Journal {
            path: path.to_owned(),
            reason,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| failed(error.to_string()))?;
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            failed("another coordinator writes to it: give each mesh a file of its own".to_owned())
        })?;
        let (mesh, valid) = read(&*file).map_err(&failed)?;
        if let Some(mesh) = &mesh
            && mesh.plan != plan
        {
            return Err(failed(
                "it was measured with other options: give the same ones to go on, or another file"
                    .to_owned(),
            ));
        }
        let is_new = mesh.is_none();
        // A line that was cut is written over.
        file.set_len(valid)
            .and_then(|()| file.seek(SeekFrom::Start(valid)))
            .map_err(|error| failed(error.to_string()))?;
        let mut mesh = mesh.unwrap_or_else(|| empty(plan.clone()));
        mesh.left.clear();
        let places = places(&mesh);
        let mut journal = Journal {
            path: path.to_owned(),
            file: Some(file),
            mesh,
            places,
            pending: Vec::new(),
        };
        if is_new {
            journal.append(&Record::Mesh {
                version: VERSION,
                plan,
            })?;
        } else {
            journal.append(&Record::Run)?;
        }
        journal.sync()?;
        Ok(journal)
    }

    /// Reads a file that nobody writes to.
    pub fn load(path: &Path) -> Result<Mesh, MeshError> {
        let failed = |reason: String| MeshError::Journal {
            path: path.to_owned(),
            reason,
        };
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let (mesh, _) = read(&file).map_err(failed)?;
        mesh.ok_or_else(|| failed("it is empty".to_owned()))
    }

    /// What is known by now.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The whole, when there is nothing more to come.
    pub fn into_mesh(self) -> Mesh {
        self.mesh
    }

    /// The place of a node of this name, which it gets when it is new. One that comes back with other
    /// ports is refused: what was measured would no longer be about them.
    pub(super) fn node(&mut self, node: &Node) -> Result<usize, MeshError> {
        let known = self
            .mesh
            .nodes
            .iter()
            .position(|known| known.name == node.name);
        if let Some(place) = known {
            if self.mesh.nodes[place].ports == node.ports {
                return Ok(place);
            }
            return Err(MeshError::Journal {
                path: self.path.clone(),
                reason: format!(
                    "{} came back with other ports than it has there: begin another file",
                    node.name
                ),
            });
        }
        self.append(&Record::Node(node.clone()))?;
        self.mesh.nodes.push(node.clone());
        Ok(self.mesh.nodes.len() - 1)
    }

    /// Takes a pair down. It is on disk after the next [`Journal::sync`].
    pub(super) fn pair(&mut self, pair: Pair) -> Result<(), MeshError> {
        self.append(&Record::Pair(pair.clone()))?;
        insert(&mut self.mesh, &mut self.places, pair);
        Ok(())
    }

    pub(super) fn left(&mut self, left: Left) -> Result<(), MeshError> {
        self.append(&Record::Left(left.clone()))?;
        self.mesh.left.push(left);
        Ok(())
    }

    /// The pairs that need not be measured again: the complete ones.
    pub(super) fn complete(&self) -> HashSet<(usize, usize, usize)> {
        let pairs = self.mesh.pairs.iter();
        pairs
            .filter(|pair| pair.failure.is_none())
            .map(|pair| (pair.a, pair.b, pair.rail))
            .collect()
    }

    fn append(&mut self, record: &Record) -> Result<(), MeshError> {
        if self.file.is_some() {
            serde_json::to_writer(&mut self.pending, record).map_err(|error| {
                MeshError::Journal {
                    path: self.path.clone(),
                    reason: error.to_string(),
                }
            })?;
            self.pending.push(b'\n');
        }
        Ok(())
    }

    /// Writes what is pending, and waits until it is on disk.
    pub(super) fn sync(&mut self) -> Result<(), MeshError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = file
            .write_all(&self.pending)
            .and_then(|()| file.sync_data());
        self.pending.clear();
        written.map_err(|error| MeshError::Journal {
            path: self.path.clone(),
            reason: format!("{error}; what was measured until now is still in it"),
        })
    }
}

fn empty(plan: MeshPlan) -> Mesh {
    Mesh {
        plan,
        nodes: Vec::new(),
        pairs: Vec::new(),
        left: Vec::new(),
    }
}

fn places(mesh: &Mesh) -> HashMap<(usize, usize, usize), usize> {
    let pairs = mesh.pairs.iter().enumerate();
    pairs
        .map(|(place, pair)| ((pair.a, pair.b, pair.rail), place))
        .collect()
}

fn insert(mesh: &mut Mesh, places: &mut HashMap<(usize, usize, usize), usize>, pair: Pair) {
    let key = (pair.a, pair.b, pair.rail);
    match places.get(&key) {
        Some(place) => mesh.pairs[*place] = pair,
        None => {
            places.insert(key, mesh.pairs.len());
            mesh.pairs.push(pair);
        }
    }
}

/// What a file holds, and the bytes of its whole lines.
pub(super) fn read(file: impl Read) -> Result<(Option<Mesh>, u64), String> {
    let mut reader = BufReader::new(file);
    let mut mesh: Option<Mesh> = None;
    let mut places = HashMap::new();
    let mut valid = 0;
    let mut line = Vec::new();
    for number in 1..=MOST_LINES {
        line.clear();
        let len = io::Read::by_ref(&mut reader)
            .take(LONGEST + 1)
            .read_until(b'\n', &mut line)
            .map_err(|error| error.to_string())? as u64;
        if len == 0 {
            break;
        }
        if line.last() != Some(&b'\n') {
            if len > LONGEST {
                return Err(format!("line {number} is longer than {LONGEST} bytes"));
            }
            // Cut by a crash.
            break;
        }
        let record: Record = serde_json::from_slice(&line)
            .map_err(|error| format!("line {number} is not of a mesh: {error}"))?;
        match (record, &mut mesh) {
            (Record::Mesh { version, plan }, None) => {
                if version != VERSION {
                    return Err(format!("it is of version {version}, we read {VERSION}"));
                }
                mesh = Some(empty(plan));
            }
            (Record::Node(node), Some(mesh)) => {
                check_node(&node).map_err(|reason| format!("line {number}: {reason}"))?;
                mesh.nodes.push(node);
            }
            (Record::Pair(pair), Some(mesh)) => insert(mesh, &mut places, pair),
            (Record::Left(left), Some(mesh)) => mesh.left.push(left),
            (Record::Run, Some(mesh)) => mesh.left.clear(),
            (Record::Mesh { .. }, Some(_)) => {
                return Err(format!("line {number} begins a second mesh"));
            }
            (_, None) => return Err("it does not begin as a mesh's file does".to_owned()),
        }
        valid += len;
    }
    if let Some(mesh) = &mesh {
        mesh.check()?;
        mesh.plan.check().map_err(|error| error.to_string())?;
    }
    Ok((mesh, valid))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::NodePort;
    use super::*;

    fn node(name: &str) -> Node {
        Node {
            name: name.to_owned(),
            ports: vec![NodePort {
                device: "mlx5_0".to_owned(),
                port: 1,
            }],
        }
    }

    fn pair(a: usize, b: usize, failure: Option<&str>) -> Pair {
        Pair {
            a,
            b,
            rail: 0,
            there_gbps: Some(97.5),
            back_gbps: Some(97.25),
            latency_us: failure.is_none().then_some(1.75),
            failure: failure.map(str::to_owned),
        }
    }

    fn begun(path: &Path) -> Journal {
        let mut journal = Journal::open(path, MeshPlan::default()).expect("a file");
        for name in ["node-1", "node-2", "node-3"] {
            journal.node(&node(name)).expect("a place");
        }
        journal.pair(pair(0, 1, None)).expect("taken down");
        journal
            .pair(pair(0, 2, Some("node-3 left")))
            .expect("taken down");
        let reason = "its power went".to_owned();
        journal.left(Left { node: 2, reason }).expect("taken down");
        journal.sync().expect("synced");
        journal
    }

    #[test]
    fn an_interrupted_mesh_goes_on_with_what_is_not_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.jsonl");
        drop(begun(&path));
        let mut again = Journal::open(&path, MeshPlan::default()).expect("the same file");
        assert_eq!(again.complete(), HashSet::from([(0, 1, 0)]));
        assert_eq!(again.mesh().left, [], "it may be back");
        assert_eq!(again.node(&node("node-3")).expect("its place"), 2);
        again.pair(pair(0, 2, None)).expect("taken down");
        again.sync().expect("synced");
        let mesh = Journal::load(&path).expect("readable");
        assert_eq!((mesh.nodes.len(), mesh.pairs.len()), (3, 2));
        assert!(mesh.pairs.iter().all(|pair| pair.failure.is_none()));
    }

    #[test]
    fn a_line_cut_by_a_crash_is_left_out_and_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.jsonl");
        drop(begun(&path));
        let whole = std::fs::read(&path).expect("a file");
        for cut in 1..40 {
            std::fs::write(&path, &whole[..whole.len() - cut]).expect("cut");
            let mut journal = Journal::open(&path, MeshPlan::default()).expect("still readable");
            journal.pair(pair(1, 2, None)).expect("taken down");
            journal.sync().expect("synced");
            drop(journal);
            let mesh = Journal::load(&path).expect("no half line inside");
            assert!(mesh.pairs.contains(&pair(1, 2, None)));
        }
    }

    #[test]
    fn a_file_of_another_plan_or_in_use_or_with_other_ports_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.jsonl");
        let mut journal = begun(&path);
        let in_use = Journal::open(&path, MeshPlan::default()).expect_err("in use");
        assert!(
            in_use.to_string().contains("another coordinator"),
            "{in_use}"
        );
        let mut changed = node("node-1");
        changed.ports.push(changed.ports[0].clone());
        assert!(journal.node(&changed).is_err());
        drop(journal);
        let other = MeshPlan {
            rails_apart: true,
            ..MeshPlan::default()
        };
        let error = Journal::open(&path, other).expect_err("another plan");
        assert!(error.to_string().contains("other options"), "{error}");
    }

    #[test]
    fn what_is_no_mesh_is_said_with_its_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.jsonl");
        let whole = {
            drop(begun(&path));
            std::fs::read_to_string(&path).expect("text")
        };
        for (from, to, word) in [
            ("\"b\":1", "\"b\":77", "does not name"),
            ("97.5", "-1", "can't have been measured"),
            ("\"record\":\"pair\"", "\"record\":\"bear\"", "line 5"),
            ("node-1", "node\\u001b1", "no name"),
            ("\"version\":1", "\"version\":2", "version 2"),
        ] {
            std::fs::write(&path, whole.replacen(from, to, 1)).expect("written");
            let error = Journal::load(&path).expect_err(from).to_string();
            assert!(error.contains(word), "{error}");
        }
        std::fs::write(&path, "").expect("written");
        assert!(Journal::load(&path).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn arbitrary_files_are_a_mesh_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&bytes).expect("written");
            file.rewind().expect("rewound");
            read(&file).ok();
        }
    }
}
