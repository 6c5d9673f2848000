//! The readers of bytes that others write, as targets of a fuzzer. See
//! [`trackbed_cache::fuzzing`].

use std::os::unix::ffi::OsStrExt;

pub use trackbed_cache::fuzzing::Target;

use crate::expose::mountinfo::MountTable;
use crate::{driver, keeper};

/// Those of this crate.
pub const TARGETS: &[Target] = &[
    keeper::fuzzing::FRAME,
    keeper::fuzzing::MESSAGE,
    keeper::fuzzing::BITS,
    driver::fuzzing::VOLUME,
    driver::fuzzing::PATH,
    driver::fuzzing::RECORD,
    MOUNTINFO,
];

/// The kernel's table of mounts, whose paths are anybody's.
const MOUNTINFO: Target = Target {
    name: "mountinfo",
    seeds: || {
        let table = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            36 22 0:45 / /mnt/a\\040b ro,nosuid shared:2 master:1 - fuse.trackbed trackbed:cats ro\n\
            37 22 8:1 /versions/tree /pods\\134x ro - ext4 /dev/sda1 rw\n";
        vec![table.as_bytes().to_vec()]
    },
    check: |bytes| {
        let table = MountTable::parse(bytes);
        let lines = bytes.split(|&byte| byte == b'\n').count();
        assert!(table.mounts().len() <= lines);
        for mount in table.mounts() {
            assert!(mount.mount_point.as_os_str().as_bytes().len() <= bytes.len());
            let top = table.top(&mount.mount_point).map(|top| &top.mount_point);
            assert!(top.is_none_or(|point| *point == mount.mount_point));
            let _ = mount.is_ours();
        }
    },
};
