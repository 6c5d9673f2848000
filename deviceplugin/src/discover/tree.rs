//! Files of sysfs below a root, as far as they are there.

use std::fs;
use std::path::{Path, PathBuf};

use trackbed_rdma::kernel_files;

pub(super) struct Tree<'a>(&'a Path);

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path) -> Tree<'a> {
        Tree(root)
    }

    /// Where something is.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// What a file holds; `None` if it is not there or can't be read (any more).
    pub(super) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        kernel_files::bytes(&self.path(path))
    }

    /// A file's text without white space around it; `None` also if it is empty.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        kernel_files::text(&self.path(path))
    }

    /// What a symbolic link says.
    pub(super) fn link(&self, path: &str) -> Option<PathBuf> {
        fs::read_link(self.path(path)).ok()
    }

    /// What is in a folder, sorted; nothing if it is not there.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        kernel_files::names(&self.path(path))
    }
}
