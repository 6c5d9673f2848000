//! The layouts of the bindings beside those that the C compiler gives the system's own headers.
//!
//! What is compared is in `layouts.rs`, which `hack/generate-bindings` writes from the bindings: each
//! type's size and alignment, each field's offset and size, and each constant, as the Rust compiler has
//! them here. A program in C prints what the headers say. Types without a name in C are looked at through
//! the fields that have them.
//!
//! Headers later than ours may have grown: a type may be longer at its end, or at its front as
//! `verbs_context` is, and nothing else may differ. Headers of our version must agree in all.

use std::collections::BTreeMap;
use std::mem::{align_of, offset_of, size_of};
use std::path::Path;
use std::process::Command;

use super::*;

/// A type of the bindings, as the Rust compiler lays it out.
struct Type {
    /// `struct`, `union`, or `anonymous` where C has no name for it.
    kind: &'static str,
    name: &'static str,
    size: usize,
    align: usize,
    fields: Vec<Field>,
}

struct Field {
    name: &'static str,
    offset: usize,
    /// 0 where the bindings don't say.
    size: usize,
    /// The anonymous type that it is of, else nothing.
    of: &'static str,
}

/// The size of a field, from a function that is never called.
const fn size_of_field<T, F>(_place: fn(*const T) -> *const F) -> usize {
    size_of::<F>()
}

macro_rules! types {
    ($( $kind:ident $name:ident { $( $field:ident $(: $of:ident)?, )* } )*) => {
        fn types() -> Vec<Type> {
            vec![$( Type {
                kind: stringify!($kind),
                name: stringify!($name),
                size: size_of::<$name>(),
                align: align_of::<$name>(),
                fields: vec![$( Field {
                    name: stringify!($field),
                    offset: offset_of!($name, $field),
                    size: size_of_field(|place: *const $name| {
                        // SAFETY: never called; only the type of what it returns is looked at.
                        unsafe { &raw const (*place).$field }
                    }),
                    of: concat!("" $(, stringify!($of))?),
                } ),*],
            } ),*]
        }
    };
}

macro_rules! constants {
    ($( $name:ident, )*) => {
        fn constants() -> Vec<(&'static str, i64)> {
            vec![$( (stringify!($name), i64::from($name)) ),*]
        }
    };
}

include!("layouts.rs");

/// What of a type a [`Fact`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aspect {
    Size,
    Alignment,
    Offset,
    /// The size of something inside it.
    Inside,
    Value,
}

/// Something that both compilers have a number for.
#[derive(Debug, Clone)]
struct Fact {
    /// The named type it belongs to, or the constant.
    owner: String,
    aspect: Aspect,
    /// The expression in C whose value it is.
    c: String,
    /// Its value in Rust.
    rust: i64,
}

/// Collects the facts about a type and what is inside it.
struct Facts<'t> {
    anonymous: BTreeMap<&'static str, &'t Type>,
    all: Vec<Fact>,
}

impl Facts<'_> {
    fn of(types: &[Type], constants: &[(&'static str, i64)]) -> Vec<Fact> {
        let anonymous = types.iter().filter(|each| each.kind == "anonymous");
        let mut facts = Facts {
            anonymous: anonymous.map(|each| (each.name, each)).collect(),
            all: Vec::new(),
        };
        for each in types.iter().filter(|each| each.kind != "anonymous") {
            let owner = format!("{} {}", each.kind, each.name);
            let size = format!("sizeof({owner})");
            facts.add(&owner, Aspect::Size, size, each.size);
            let alignment = format!("_Alignof({owner})");
            facts.add(&owner, Aspect::Alignment, alignment, each.align);
            facts.add_fields(&owner, each, "", 0);
        }
        facts.all.extend(constants.iter().map(|&(name, rust)| Fact {
            owner: name.to_owned(),
            aspect: Aspect::Value,
            c: name.to_owned(),
            rust,
        }));
        facts.all
    }

    fn add(&mut self, owner: &str, aspect: Aspect, c: String, rust: usize) {
        self.all.push(Fact {
            owner: owner.to_owned(),
            aspect,
            c,
            rust: rust as i64,
        });
    }

    /// The fields of a type that stands at `base` in its owner, as `path` (`a.b.`).
    fn add_fields(&mut self, owner: &str, of: &Type, path: &str, base: usize) {
        for field in &of.fields {
            let offset = base + field.offset;
            let inner = self.anonymous.get(field.of).copied();
            if field.name.starts_with("__bindgen_anon_") {
                // C takes its fields for those of the type around it.
                let inner = inner.expect("a nameless field is of an anonymous type");
                self.add_fields(owner, inner, path, offset);
                continue;
            }
            // Names that Rust keeps for itself have an underscore there.
            let place = format!("{path}{}", field.name.trim_end_matches('_'));
            self.add(
                owner,
                Aspect::Offset,
                format!("offsetof({owner}, {place})"),
                offset,
            );
            if field.size > 0 {
                let size = format!("sizeof((({owner} *)0)->{place})");
                self.add(owner, Aspect::Inside, size, field.size);
            }
            if let Some(inner) = inner {
                let alignment = format!("_Alignof(__typeof__((({owner} *)0)->{place}))");
                self.add(owner, Aspect::Alignment, alignment, inner.align);
                self.add_fields(owner, inner, &format!("{place}."), offset);
            }
        }
    }
}

/// How old the headers are, compared with those that the bindings were made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Headers {
    Same,
    /// Or of unknown age.
    Later,
}

/// The facts that C has another number for, where that is not growth; `actual` has C's numbers.
fn differences(facts: &[Fact], actual: &[i64], headers: Headers) -> Vec<String> {
    assert_eq!(facts.len(), actual.len());
    let grown = |owner: &str| {
        let same = facts.iter().zip(actual);
        let size = same.filter(|(fact, _)| fact.owner == owner && fact.aspect == Aspect::Size);
        size.map(|(fact, c)| c - fact.rust).sum::<i64>()
    };
    // Whether a type has grown at its front: then all its fields have moved by as much.
    let moved = |owner: &str| {
        let mut offsets = facts
            .iter()
            .zip(actual)
            .filter(|(fact, _)| fact.owner == owner && fact.aspect == Aspect::Offset);
        let growth = grown(owner);
        growth > 0 && offsets.all(|(fact, c)| c - fact.rust == growth)
    };
    let differs = |&(fact, c): &(&Fact, &i64)| {
        let by = c - fact.rust;
        let allowed = headers == Headers::Later
            && match fact.aspect {
                Aspect::Size | Aspect::Inside => by > 0,
                Aspect::Offset => moved(&fact.owner),
                Aspect::Alignment | Aspect::Value => false,
            };
        by != 0 && !allowed
    };
    facts
        .iter()
        .zip(actual)
        .filter(differs)
        .map(|(fact, c)| format!("{}: {} in Rust, {c} in C", fact.c, fact.rust))
        .collect()
}

const INCLUDES: &str = "#include <stddef.h>\n#include <stdio.h>\n#include <netinet/in.h>\n\
                        #include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n";

/// Runs `cc` on a program; what it complains about is the error.
fn compile(source: &str, folder: &Path) -> Result<std::path::PathBuf, String> {
    let (file, program) = (folder.join("layout.c"), folder.join("layout"));
    std::fs::write(&file, source).expect("a temporary folder can be written to");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-w", "-o"])
        .args([&program, &file])
        .output()
        .map_err(|error| format!("cc: {error}"))?;
    if output.status.success() {
        return Ok(program);
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Whether the headers are as old as the bindings; `None` where they are older.
fn headers() -> Option<Headers> {
    let ours = include_str!("bindings.rs")
        .split_whitespace()
        .skip_while(|word| *word != "rdma-core")
        .nth(1)
        .and_then(version)
        .expect("the bindings say which rdma-core they are of");
    // libibverbs 1.14.44.0 is that of rdma-core 44.0.
    let package = Command::new("pkg-config")
        .args(["--modversion", "libibverbs"])
        .output();
    let theirs = package.ok().and_then(|output| {
        let text = String::from_utf8(output.stdout).ok()?;
        version(text.trim().splitn(3, '.').nth(2)?)
    });
    match theirs {
        Some(theirs) if theirs < ours => None,
        Some(theirs) if theirs == ours => Some(Headers::Same),
        _ => Some(Headers::Later),
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[test]
fn every_type_and_constant_is_as_the_systems_headers_have_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    if let Err(reason) = compile(
        &format!("{INCLUDES}int main(void){{return 0;}}"),
        folder.path(),
    ) {
        return eprintln!(
            "skipped: no C compiler with the headers of libibverbs and librdmacm (Debian, Ubuntu: gcc \
             libibverbs-dev librdmacm-dev): {reason}"
        );
    }
    let Some(headers) = headers() else {
        return eprintln!("skipped: the headers here are older than those the bindings are of");
    };
    let facts = Facts::of(&types(), &constants());
    let prints: String = facts
        .iter()
        .map(|fact| format!("printf(\"%lld\\n\", (long long)({}));\n", fact.c))
        .collect();
    let source = format!("{INCLUDES}int main(void){{\n{prints}return 0;}}\n");
    let program = compile(&source, folder.path()).expect("the headers have what the bindings have");
    let output = Command::new(program).output().expect("the program runs");
    let actual: Vec<i64> = String::from_utf8(output.stdout)
        .expect("numbers")
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    let differences = differences(&facts, &actual, headers);
    assert!(
        differences.is_empty(),
        "the bindings are not those of this system's headers ({headers:?}):\n{}",
        differences.join("\n")
    );
    eprintln!("compared with C: {} numbers ({headers:?})", facts.len());
}

#[test]
fn no_type_of_the_bindings_is_left_out() {
    let listed: Vec<&str> = types().iter().map(|each| each.name).collect();
    let sized = include_str!("bindings.rs")
        .split("[\"Size of ")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    let missing: Vec<&str> = sized.filter(|name| !listed.contains(name)).collect();
    assert!(
        missing.is_empty() && listed.len() > 100,
        "run hack/generate-bindings: {missing:?}"
    );
    // Anonymous types are compared through a field: only those inside what is opaque have none.
    let types = types();
    for each in types.iter().filter(|each| each.kind == "anonymous") {
        let is_of = |field: &Field| field.of == each.name;
        let seen = types.iter().any(|other| other.fields.iter().any(is_of));
        let around = each.name.split("__bindgen_ty_").next();
        let opaque = |other: &Type| Some(other.name) == around && other.fields.is_empty();
        assert!(
            seen || types.iter().any(opaque),
            "{} is compared with nothing",
            each.name
        );
    }
}

#[test]
fn a_field_that_moved_is_found_and_a_type_that_grew_is_not_blamed() {
    let facts = Facts::of(&types(), &constants());
    let same: Vec<i64> = facts.iter().map(|fact| fact.rust).collect();
    let find = |c: &str| facts.iter().position(|fact| fact.c == c).expect(c);
    let with = |changes: &[(&str, i64)]| {
        let mut actual = same.clone();
        changes.iter().for_each(|&(c, by)| actual[find(c)] += by);
        actual
    };
    let blamed = |actual: &[i64], headers| differences(&facts, actual, headers).len();
    assert_eq!(blamed(&same, Headers::Same), 0);

    let moved = with(&[("offsetof(struct ibv_wc, imm_data)", 4)]);
    assert_eq!(blamed(&moved, Headers::Same), 1);
    assert_eq!(blamed(&moved, Headers::Later), 1);
    let other = with(&[("IBV_WC_RDMA_READ", 1)]);
    assert_eq!(blamed(&other, Headers::Later), 1);

    let longer = with(&[("sizeof(struct ibv_qp_attr)", 8)]);
    assert_eq!(blamed(&longer, Headers::Same), 1);
    assert_eq!(blamed(&longer, Headers::Later), 0);
    let shorter = with(&[("sizeof(struct ibv_qp_attr)", -8)]);
    assert_eq!(blamed(&shorter, Headers::Later), 1);

    // A table that grew at its front has all its fields farther back.
    let mut front = with(&[("sizeof(struct verbs_context)", 8)]);
    for (fact, c) in facts.iter().zip(&mut front) {
        if fact.owner == "struct verbs_context" && fact.aspect == Aspect::Offset {
            *c += 8;
        }
    }
    assert_eq!(blamed(&front, Headers::Later), 0);
    assert!(blamed(&front, Headers::Same) > 1);
}
