//! Unix sockets that kubelet and people's commands call: who may connect, and what a crash may have left.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;
use std::str::FromStr;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, socket};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::UnixListener;

/// The longest socket path, in bytes: `sun_path` of unix(7) less its zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Connections that may wait to be accepted: kubelet and side-cars have a few.
const BACKLOG: i32 = 128;

/// Where a socket is, `unix:///run/….sock`, as `CSI_ENDPOINT` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Not an endpoint.
    #[error("{0:?} is not an endpoint: use unix:///absolute/path.sock, of at most 94 bytes")]
    Malformed(String),
    /// Another process answers there.
    #[error("another process listens on {}: stop it first", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{} is there and is not a socket: remove it, or choose another endpoint", .0.display())]
    NotASocket(PathBuf),
    /// The file system refused.
    #[error("cannot listen on {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Endpoint {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let path = Path::new(text.strip_prefix("unix://").unwrap_or(text));
        let fits = beside(path).as_os_str().len() <= MAX_SOCKET_PATH_BYTES;
        if path.is_absolute() && path.file_name().is_some() && fits && !text.contains('\0') {
            Ok(Endpoint(path.to_owned()))
        } else {
            Err(EndpointError::Malformed(text.chars().take(200).collect()))
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// Where a socket is made before it gets its name: hidden, as whoever watches the folder (kubelet
/// does) may take every other name for a socket to call.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{:07}.new", process::id()))
}

/// A listening socket's file, removed when dropped, if it is still this one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

/// Listens. Only this user can connect, from the first moment. A socket that nobody listens on any
/// more is replaced, and nothing else ever is.
pub fn listen(endpoint: &Endpoint) -> Result<(UnixListener, SocketFile), EndpointError> {
    let (listener, file) = bind(endpoint)?;
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(listener))
        .map_err(|source| EndpointError::Io {
            path: endpoint.path().to_owned(),
            source,
        })?;
    Ok((listener, file))
}

/// As [`listen`], for threads that wait.
pub fn bind(
    endpoint: &Endpoint,
) -> Result<(std::os::unix::net::UnixListener, SocketFile), EndpointError> {
    let path = endpoint.path();
    let failed = |source| EndpointError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(EndpointError::NotASocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(_) => return Err(EndpointError::InUse(path.to_owned())),
        },
    }
    // Made under another name and then moved into place: there is no moment without a socket, nor
    // one with a socket that nobody listens on.
    let new = beside(path);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = bind_closed(&new).map_err(failed)?;
    let identity = fs::symlink_metadata(&new)
        .and_then(|made| fs::rename(&new, path).map(|()| (made.dev(), made.ino())))
        .map_err(|error| {
            // Nothing is served there: what cannot be removed is only litter.
            drop(fs::remove_file(&new));
            failed(error)
        })?;
    let file = SocketFile {
        path: path.to_owned(),
        identity,
    };
    Ok((listener, file))
}

/// Listens on a new socket that only this user can open. Its mode is set before it has a name
/// (Linux gives the file the mode of the socket's own inode), so the process' umask, which all its
/// threads share, is left alone.
fn bind_closed(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let (family, kind) = (AddressFamily::Unix, SockType::Stream);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_this = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if is_this && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_absolute_path_that_fits_a_socket() {
        let endpoint: Endpoint = "unix:///run/csi.sock".parse().expect("valid");
        assert_eq!(endpoint.path(), Path::new("/run/csi.sock"));
        assert_eq!(endpoint.to_string(), "unix:///run/csi.sock");
        let long = format!("unix:///{}", "a".repeat(100));
        for text in ["", "tcp://1.2.3.4:5", "unix://csi.sock", "unix:///", &long] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn only_a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("csi.sock");
        let endpoint = Endpoint(path.clone());

        fs::write(&path, "precious").expect("writes");
        assert!(matches!(
            listen(&endpoint),
            Err(EndpointError::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
        fs::remove_file(&path).expect("removes");

        let (listener, file) = listen(&endpoint).expect("listens");
        let mode = fs::symlink_metadata(&path).expect("there").mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(listen(&endpoint), Err(EndpointError::InUse(_))));

        // As a crash leaves it: the file is there, nobody listens.
        drop(listener);
        std::mem::forget(file);
        let (_listener, file) = listen(&endpoint).expect("listens on the stale socket's path");
        drop(file);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(folder.path()).expect("reads").count(), 0);
    }
}
