//! A cable between two nodes that can flip a bit, stall, or be cut.
//!
//! It listens where peers are told to connect and passes bytes on to where the node really
//! listens, doing what it was told to the bytes that come back.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What the wire does to the bytes that a node sends to its peers.
#[derive(Debug, Clone, Copy)]
pub enum Harm {
    /// Flips a bit once in so many bytes.
    FlipEvery(u64),
    /// Closes each connection after so many bytes.
    CutAfter(u64),
    /// Stops passing anything on after so many bytes, and keeps the connection open.
    StallAfter(u64),
}

/// The cable; dropping it cuts it.
pub struct Wire {
    task: JoinHandle<()>,
    done: Arc<AtomicU64>,
}

impl Wire {
    /// Lays a wire from `listen` to `node`.
    pub async fn lay(listen: SocketAddr, node: SocketAddr, harm: Harm) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let done = Arc::new(AtomicU64::new(0));
        let count = done.clone();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(node).await {
                        // The end of a connection is what many of these tests are about.
                        let _ = pass(near, far, harm, &count).await;
                    }
                });
            }
        });
        Ok(Self { task, done })
    }

    /// How often harm was done.
    pub fn harm_done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(near: TcpStream, far: TcpStream, harm: Harm, done: &AtomicU64) -> io::Result<()> {
    let (mut near_in, mut near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    let requests = tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
    let mut buffer = vec![0; 64 << 10];
    let mut passed = 0u64;
    loop {
        let read = far_in.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        let bytes = &mut buffer[..read];
        match harm {
            Harm::FlipEvery(every) => {
                let next = every - passed % every;
                if let Some(byte) = bytes.get_mut(next as usize) {
                    *byte ^= 0x10;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
            Harm::CutAfter(limit) if passed + read as u64 > limit => {
                done.fetch_add(1, Ordering::Relaxed);
                break;
            }
            Harm::StallAfter(limit) if passed + read as u64 > limit => {
                done.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        passed += read as u64;
        near_out.write_all(bytes).await?;
    }
    requests.abort();
    Ok(())
}
