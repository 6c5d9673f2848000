//! The tests that were begun and have not ended.

use std::collections::VecDeque;
use std::time::Duration;

use super::Step;
use crate::mesh::Pair;

/// A test: one step of one pair.
pub(super) struct Test {
    pub(super) pair: Pair,
    pub(super) step: Step,
    pub(super) server: usize,
    pub(super) client: usize,
    pub(super) deadline: Duration,
    /// Whether the client was told to begin.
    pub(super) started: bool,
    pub(super) figure: Option<f64>,
    pub(super) failure: Option<String>,
    pub(super) server_done: bool,
    pub(super) client_done: bool,
}

/// The tests that are under way, in the order of their beginning, so that the same events give the same
/// actions. Their numbers are consecutive, and those of one round end together.
#[derive(Default)]
pub(super) struct Tests {
    /// The number of the first place.
    first: u64,
    /// `None` where one has ended.
    places: VecDeque<Option<Test>>,
}

impl Tests {
    /// Its number from now on.
    pub(super) fn begin(&mut self, test: Test) -> u64 {
        self.places.push_back(Some(test));
        self.first + self.places.len() as u64 - 1
    }

    fn place(&mut self, id: u64) -> Option<&mut Option<Test>> {
        let place = usize::try_from(id.checked_sub(self.first)?).ok()?;
        self.places.get_mut(place)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Test> {
        self.place(id)?.as_mut()
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Test> {
        let test = self.place(id)?.take();
        while let Some(None) = self.places.front() {
            self.places.pop_front();
            self.first += 1;
        }
        test
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Test)> {
        let numbered = (self.first..).zip(&self.places);
        numbered.filter_map(|(id, place)| Some((id, place.as_ref()?)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}
