//! The layouts of our bindings beside those of the crate `rdma-sys`: its own run of bindgen, and types
//! that its authors wrote by hand.
//!
//! What is compared is in the list that `hack/generate-bindings` writes. Types without a name in C, and
//! the places where they stand, have names in either crate that the other doesn't know; the test of
//! `trackbed_rdma::sys` beside the C compiler looks into those.

use std::mem::{align_of, offset_of, size_of};

use trackbed_rdma::sys as ours;

#[derive(Default)]
struct Compared {
    count: usize,
    differences: Vec<String>,
}

impl Compared {
    fn number(&mut self, what: &str, ours: usize, theirs: usize) {
        self.count += 1;
        if ours != theirs {
            self.differences
                .push(format!("{what}: {ours} with us, {theirs} in rdma-sys"));
        }
    }
}

macro_rules! compare {
    ($compared:ident anonymous $name:ident $fields:tt) => {};
    // rdma-sys takes them from libc, as C does.
    ($compared:ident struct in_addr $fields:tt) => {};
    ($compared:ident struct in6_addr $fields:tt) => {};
    ($compared:ident $kind:ident $name:ident { $( $field:ident )* }) => {
        let name = stringify!($name);
        let (ours, theirs) = (size_of::<ours::$name>(), size_of::<rdma_sys::$name>());
        $compared.number(&format!("size of {name}"), ours, theirs);
        let (ours, theirs) = (align_of::<ours::$name>(), align_of::<rdma_sys::$name>());
        $compared.number(&format!("alignment of {name}"), ours, theirs);
        $( compare!(@field $compared $name $field); )*
    };
    (@field $compared:ident $name:ident __bindgen_anon_1) => {};
    (@field $compared:ident $name:ident __bindgen_anon_2) => {};
    (@field $compared:ident $name:ident $field:ident) => {
        let what = concat!("offset of ", stringify!($name), "::", stringify!($field));
        let offsets = [
            offset_of!(ours::$name, $field),
            offset_of!(rdma_sys::$name, $field),
        ];
        $compared.number(what, offsets[0], offsets[1]);
    };
}

macro_rules! types {
    ($( $kind:ident $name:ident { $( $field:ident $(: $of:ident)?, )* } )*) => {
        fn compared() -> Compared {
            let mut compared = Compared::default();
            $( compare!(compared $kind $name { $( $field )* }); )*
            compared
        }
    };
}

macro_rules! constants {
    ($( $name:ident, )*) => {};
}

include!("../../../rdma/src/sys/layouts.rs");

#[test]
fn our_bindings_and_those_of_rdma_sys_lay_types_out_alike() {
    let compared = compared();
    assert!(
        compared.differences.is_empty(),
        "{}",
        compared.differences.join("\n")
    );
    assert!(compared.count > 400, "only {} numbers", compared.count);
    eprintln!("compared with rdma-sys: {} numbers", compared.count);
}
