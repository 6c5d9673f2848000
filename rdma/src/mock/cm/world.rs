//! What the mock connection manager keeps: channels, identifiers, events that wait, faults to come.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::Answer;
use crate::mock::fabric::signal;
use crate::sys;

/// All of the process. Identifiers and channels go by the addresses of their C structures.
#[derive(Default)]
pub(super) struct World {
    pub(super) channels: HashMap<usize, Channel>,
    pub(super) ids: HashMap<usize, Identifier>,
    /// Events that were taken and not acknowledged: the identifier that waits for each.
    pub(super) taken: HashMap<usize, usize>,
    answers: HashMap<(&'static str, SocketAddr), VecDeque<Answer>>,
    ports: u16,
}

pub(super) struct Channel {
    pub(super) fd: RawFd,
    pub(super) events: VecDeque<Waiting>,
}

/// An event that nobody has taken.
pub(super) struct Waiting {
    pub(super) id: usize,
    /// Of a request: who listens.
    pub(super) listener: usize,
    pub(super) kind: u32,
    pub(super) status: i32,
    pub(super) private_data: Vec<u8>,
    /// Reads to serve and to have under way.
    pub(super) depths: (u8, u8),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    New,
    Listening,
    /// A request that is not answered.
    Requested,
    /// Has asked, or answered.
    Connecting,
    Connected,
}

pub(super) struct Identifier {
    pub(super) channel: usize,
    pub(super) state: State,
    /// What errors name: the peer's address, or the one listened on.
    pub(super) address: Option<SocketAddr>,
    /// Of a request: the address it was made to.
    pub(super) via: Option<SocketAddr>,
    /// The identifier at the other end.
    pub(super) peer: Option<usize>,
    pub(super) qp_number: u32,
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(Mutex::default);

pub(super) fn lock() -> MutexGuard<'static, World> {
    // A test that failed while it held the lock says nothing about the others.
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    pub(super) fn new(id: usize, kind: u32, status: i32) -> Waiting {
        Waiting {
            id,
            listener: 0,
            kind,
            status,
            private_data: Vec::new(),
            depths: (0, 0),
        }
    }
}

impl World {
    pub(super) fn answer(&mut self, call: &'static str, address: SocketAddr, answer: Answer) {
        let answers = self.answers.entry((call, address)).or_default();
        answers.push_back(answer);
    }

    /// What the test has in store for a call on an identifier.
    pub(super) fn arranged(&mut self, call: &'static str, id: usize) -> Option<Answer> {
        let id = self.ids.get(&id)?;
        let mut names = id.address.into_iter().chain(id.via);
        names.find_map(|address| self.answers.get_mut(&(call, address))?.pop_front())
    }

    /// The identifiers of an address.
    pub(super) fn of(&self, address: SocketAddr) -> Vec<usize> {
        let found = self.ids.iter();
        found
            .filter(|(_, id)| id.address == Some(address))
            .map(|(raw, _)| *raw)
            .collect()
    }

    pub(super) fn report(&mut self, address: SocketAddr, kind: u32, status: i32) {
        for id in self.of(address) {
            self.push(Waiting::new(id, kind, status));
        }
    }

    pub(super) fn report_of_another(&mut self, address: SocketAddr, kind: u32) {
        for id in self.of(address) {
            let channel = self.ids[&id].channel;
            // No structure lies at this address.
            self.push_on(channel, Waiting::new(usize::MAX, kind, 0));
        }
    }

    pub(super) fn remove_device(&mut self, address: SocketAddr) {
        for (raw, id) in &self.ids {
            if [id.address, id.via].contains(&Some(address)) {
                super::identifiers::take_device(*raw);
            }
        }
    }

    /// Puts an event on its identifier's channel.
    pub(super) fn push(&mut self, event: Waiting) {
        if let Some(channel) = self.ids.get(&event.id).map(|id| id.channel) {
            self.push_on(channel, event);
        }
    }

    pub(super) fn push_on(&mut self, channel: usize, event: Waiting) {
        if let Some(channel) = self.channels.get_mut(&channel) {
            channel.events.push_back(event);
            signal(channel.fd);
        }
    }

    /// Who listens on an address.
    pub(super) fn listener(&self, address: SocketAddr) -> Option<usize> {
        let found = self.of(address);
        found
            .into_iter()
            .find(|id| self.ids[id].state == State::Listening)
    }

    /// A port nobody has had.
    pub(super) fn free_port(&mut self) -> u16 {
        self.ports += 1;
        20_000 + self.ports
    }

    /// Tells the other end that this one has gone.
    pub(super) fn part(&mut self, id: usize) {
        let Some(own) = self.ids.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut own.state, State::New);
        let Some(peer) = own.peer.take() else { return };
        let (kind, status) = match before {
            State::Connected => (sys::RDMA_CM_EVENT_DISCONNECTED, 0),
            // The code of a refusal by the program.
            _ => (sys::RDMA_CM_EVENT_REJECTED, 28),
        };
        if let Some(there) = self.ids.get_mut(&peer) {
            there.state = State::New;
            there.peer = None;
            self.push(Waiting::new(peer, kind, status));
        }
    }
}
