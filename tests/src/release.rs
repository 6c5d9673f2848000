//! A build of Trackbed that takes itself for another release than the one that was built.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use memchr::memmem;

use crate::cluster::trackbed;

/// The version that was built.
pub const THIS: &str = env!("CARGO_PKG_VERSION");

/// Copies the binary into a folder, with another version of as many letters wherever it has its own. So the
/// copy says to keepers, API servers and people that it is that version; all that it does is the same.
///
/// Gives the copy and its version.
pub fn another(folder: &Path) -> io::Result<(PathBuf, String)> {
    let last = THIS.len() - 1;
    let digit = THIS.as_bytes()[last];
    let other = if digit == b'9' { '8' } else { '9' };
    let version = format!("{}{other}", &THIS[..last]);
    let mut program = fs::read(trackbed())?;
    let places: Vec<usize> = memmem::find_iter(&program, THIS).collect();
    for at in places {
        program[at..at + THIS.len()].copy_from_slice(version.as_bytes());
    }
    let copy = folder.join("trackbed-another-release");
    fs::write(&copy, program)?;
    fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
    let said = Command::new(&copy).arg("--version").output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    if said.trim() != format!("trackbed {version}") {
        return Err(io::Error::other(format!("it takes itself for {said:?}")));
    }
    Ok((copy, version))
}
