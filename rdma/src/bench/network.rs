//! TCP between the two ends: listening, accepting one client, connecting.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::BenchError;

/// How long a client tries to reach a server that isn't listening yet.
const CONNECT: Duration = Duration::from_secs(10);

/// Listens on all addresses, of IPv4 only where there is no IPv6.
pub(super) fn listen(port: u16) -> Result<TcpListener, BenchError> {
    let everywhere = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    let ipv4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    TcpListener::bind(everywhere)
        .or_else(|error| match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => TcpListener::bind(ipv4),
            _ => Err(error),
        })
        .map_err(|source| BenchError::Listen {
            address: everywhere,
            source,
        })
}

/// The next one who connects; without `patience`, whenever that is.
pub(super) fn accept(
    listener: &TcpListener,
    patience: Option<Duration>,
) -> Result<(TcpStream, SocketAddr), BenchError> {
    let failed = |source| BenchError::Accept { source };
    listener.set_nonblocking(true).map_err(failed)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                return Ok((stream, peer));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if let Some(waited) = patience.filter(|patience| start.elapsed() > *patience) {
                    return Err(BenchError::NoClient { waited });
                }
                thread::sleep(Duration::from_millis(20));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Connects, waiting a little for a server that is just being started.
pub(super) fn connect(host: &str, port: u16) -> Result<TcpStream, BenchError> {
    let failed = |source| BenchError::Connect {
        host: host.to_owned(),
        source,
    };
    let deadline = Instant::now() + CONNECT;
    loop {
        let error = match resolve(host, port).and_then(|addresses| connect_any(&addresses)) {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(failed)?;
                return Ok(stream);
            }
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::ConnectionRefused || Instant::now() > deadline {
            return Err(failed(error));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn connect_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// `host`, `host:port`, an address, or `[address]:port`.
fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if let Ok(address) = host.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let (name, port) = match host.rsplit_once(':') {
        Some((name, text)) => match text.parse() {
            Ok(port) => (name, port),
            Err(_) => {
                let text = format!("{text:?} is no port");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        },
        None => (host, port),
    };
    Ok((name, port).to_socket_addrs()?.collect())
}
