//! The other side: `tokio-uring`, as many tasks as reads are under way.

use std::{cell::RefCell, path::Path, rc::Rc};

use tokio_uring::{Runtime, buf::fixed::FixedBufRegistry, fs::File};

use super::{BLOCK, Blocks, DEPTH, Places, open, short};
use crate::PeersError;

/// A runtime with its buffers registered.
pub struct TokioUring {
    // Dropped before the runtime that both belong to.
    file: Rc<File>,
    buffers: FixedBufRegistry<Vec<u8>>,
    shared: Rc<RefCell<Shared>>,
    runtime: Runtime,
}

/// What the tasks share.
struct Shared {
    places: Places,
    left: u64,
}

impl TokioUring {
    /// Makes a runtime for reads of this file, with a ring that takes all reads at once.
    pub fn open(path: &Path) -> Result<Self, PeersError> {
        let (file, blocks) = open(path)?;
        let mut builder = tokio_uring::builder();
        builder.entries(u32::from(DEPTH).next_power_of_two());
        let runtime =
            Runtime::new(&builder).map_err(PeersError::of("tokio-uring: making a runtime"))?;
        let buffers = FixedBufRegistry::new((0..DEPTH).map(|_| Vec::with_capacity(BLOCK)));
        let register = || async { buffers.register() };
        runtime
            .block_on(register())
            .map_err(PeersError::of("tokio-uring: registering buffers"))?;
        Ok(Self {
            file: Rc::new(File::from_std(file)),
            buffers,
            shared: Rc::new(RefCell::new(Shared {
                places: Places::of(blocks),
                left: 0,
            })),
            runtime,
        })
    }
}

impl Blocks for TokioUring {
    fn read(&mut self, count: u64) -> Result<(), PeersError> {
        self.shared.borrow_mut().left = count;
        self.runtime.block_on(async {
            let tasks: Vec<_> = (0..usize::from(DEPTH))
                .map(|index| {
                    let (file, shared) = (Rc::clone(&self.file), Rc::clone(&self.shared));
                    let buffers = self.buffers.clone();
                    tokio_uring::spawn(
                        async move { read_on(&file, &buffers, index, &shared).await },
                    )
                })
                .collect();
            for task in tasks {
                task.await
                    .map_err(PeersError::of("tokio-uring: a task"))??;
            }
            Ok(())
        })
    }
}

/// Reads into one buffer, block after block, until none is left to begin.
async fn read_on(
    file: &File,
    buffers: &FixedBufRegistry<Vec<u8>>,
    index: usize,
    shared: &RefCell<Shared>,
) -> Result<(), PeersError> {
    let mut buffer = buffers
        .check_out(index)
        .ok_or_else(|| PeersError::Unavailable(format!("tokio-uring: buffer {index} is in use")))?;
    loop {
        let place = {
            let shared = &mut *shared.borrow_mut();
            if shared.left == 0 {
                return Ok(());
            }
            shared.left -= 1;
            shared.places.next()
        };
        let outcome;
        (outcome, buffer) = file.read_fixed_at(buffer, place).await;
        match outcome {
            Ok(BLOCK) => {}
            Ok(bytes) => return Err(short(bytes)),
            Err(error) => return Err(PeersError::of("tokio-uring: a read")(error)),
        }
    }
}
