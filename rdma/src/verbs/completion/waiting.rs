//! Sleeping until there is a completion: notifications, and their order that loses none.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::time::{Duration, Instant};

use super::{CompletionQueue, WorkCompletion};
use crate::sys;
use crate::verbs::error::VerbsError;
use crate::verbs::event::set_blocking;

/// Notifications acknowledged at a time: each acknowledgement takes a lock in libibverbs.
const ACKNOWLEDGED_TOGETHER: u32 = 64;

impl CompletionQueue {
    /// The descriptor that becomes readable; `None` for a queue made with [`CompletionQueue::new`].
    /// Watch it level-triggered, or call [`CompletionQueue::drain_events`] each time, which doesn't block.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.shared.channel.map(|channel| {
            // SAFETY: the channel lives as long as `shared`, which `self` keeps.
            unsafe { BorrowedFd::borrow_raw((*channel.as_ptr()).fd) }
        })
    }

    /// Asks for one notification, for the next completion that arrives from now on. Poll to empty
    /// *after* this and before waiting, since what arrived before causes none.
    pub fn request_notification(&mut self) -> Result<(), VerbsError> {
        // SAFETY: the queue lives as long as `shared`.
        let code = unsafe { (self.operations.request_notify)(self.shared.raw.as_ptr(), 0) };
        if code != 0 {
            return Err(VerbsError::code(
                "ibv_req_notify_cq",
                self.shared.context.name(),
                code,
            ));
        }
        self.armed = true;
        self.due = self.due.saturating_add(1);
        Ok(())
    }

    /// Asks for a notification unless one was asked for that has not come; whether it asked. Only then
    /// is there reason to poll once more before sleeping.
    pub fn arm(&mut self) -> Result<bool, VerbsError> {
        if self.armed {
            return Ok(false);
        }
        if self.shared.channel.is_none() {
            return Err(VerbsError::WithoutEvents {
                device: self.shared.context.name().to_owned(),
            });
        }
        self.request_notification().map(|()| true)
    }

    /// Waits for the next completion, asleep in poll(2), for as long as `patience`. `None` when there was
    /// none in that time.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<WorkCompletion>, VerbsError> {
        let deadline = Instant::now().checked_add(patience);
        loop {
            if let Some(done) = self.poll()? {
                return Ok(Some(done));
            }
            if self.arm()? {
                // What arrived before this request causes no notification: look again.
                continue;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            self.sleep(left)?;
            self.drain_events()?;
        }
    }

    /// Sleeps until the descriptor is readable, a signal comes or the time is over.
    fn sleep(&self, time: Option<Duration>) -> Result<(), VerbsError> {
        let Some(fd) = self.event_fd() else {
            return Ok(());
        };
        let mut watched = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let time = time.map(|time| libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: one descriptor to watch and the time, both ours; no signal mask.
        if unsafe { libc::ppoll(&mut watched, 1, time, std::ptr::null()) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(VerbsError::Call {
                    verb: "ppoll",
                    object: format!("{} completion channel", self.shared.context.name()),
                    source: error,
                });
            }
        }
        Ok(())
    }

    /// Sleeps in ibv_get_cq_event(3) itself until the notification that was asked for, or a signal: one
    /// system call where [`CompletionQueue::wait`] takes two. Returns at once where none was asked for. There
    /// is no time limit: whoever wants one has another thread end a queue pair by its
    /// [`Breaker`](crate::verbs::Breaker), and what is outstanding on that one completes.
    pub fn sleep_until_notified(&mut self) -> Result<(), VerbsError> {
        let Some(channel) = self.shared.channel.filter(|_| self.armed) else {
            return Ok(());
        };
        self.let_block(channel, true)?;
        match self.take_event(channel) {
            Ok(()) => {
                self.due = self.due.saturating_sub(1);
                self.taken(1);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(self.failed_to_take(error)),
        }
    }

    /// Takes all notifications that are due; how many there were. They are acknowledged many at a time.
    /// Each was asked for, so after the last of those nothing is read in vain.
    pub fn drain_events(&mut self) -> Result<u32, VerbsError> {
        let Some(channel) = self.shared.channel else {
            return Ok(0);
        };
        self.let_block(channel, false)?;
        let mut events = 0;
        let outcome = loop {
            match self.take_event(channel) {
                Ok(()) => {
                    events += 1;
                    if self.due == 1 {
                        self.due = 0;
                        break Ok(events);
                    }
                    self.due = self.due.saturating_sub(1);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        // Requests made before a notification came are one.
                        self.due = self.due.min(1);
                        break Ok(events);
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => break Err(self.failed_to_take(error)),
                },
            }
        };
        if events > 0 {
            self.taken(events);
        }
        outcome
    }

    /// Takes one notification from the channel.
    fn take_event(&self, channel: NonNull<sys::ibv_comp_channel>) -> io::Result<()> {
        let (mut queue, mut tag) = (null_mut(), null_mut());
        let get_event = self.shared.context.library().get_cq_event;
        // SAFETY: the channel is ours alone; the out pointers are ours.
        match unsafe { get_event(channel.as_ptr(), &mut queue, &mut tag) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn taken(&mut self, events: u32) {
        self.armed = false;
        self.unacknowledged += events;
        if self.unacknowledged >= ACKNOWLEDGED_TOGETHER {
            self.acknowledge();
        }
    }

    #[cold]
    fn failed_to_take(&self, source: io::Error) -> VerbsError {
        VerbsError::Call {
            verb: "ibv_get_cq_event",
            object: self.shared.context.name().to_owned(),
            source,
        }
    }

    /// Has taking a notification wait for one, or not.
    fn let_block(
        &mut self,
        channel: NonNull<sys::ibv_comp_channel>,
        block: bool,
    ) -> Result<(), VerbsError> {
        if self.blocks != block {
            // SAFETY: the channel lives as long as `shared`.
            let fd = unsafe { (*channel.as_ptr()).fd };
            set_blocking(fd, block).map_err(|source| VerbsError::Call {
                verb: "fcntl",
                object: self.shared.context.name().to_owned(),
                source,
            })?;
            self.blocks = block;
        }
        Ok(())
    }

    pub(super) fn acknowledge(&mut self) {
        let events = std::mem::take(&mut self.unacknowledged);
        let library = self.shared.context.library();
        // SAFETY: this queue is the only one on its channel, so all events taken were its own.
        unsafe { (library.ack_cq_events)(self.shared.raw.as_ptr(), events) };
    }
}
