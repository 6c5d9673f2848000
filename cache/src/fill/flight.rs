//! Single flight: whoever asks first does the work, all who ask meanwhile get its result.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::sync::Mutex;
use futures::channel::oneshot;

type Waiters<V> = Vec<oneshot::Sender<V>>;

/// Work under way, by what it is for.
pub(crate) struct Flights<K, V>(Arc<Mutex<HashMap<K, Waiters<V>>>>);

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Flights(Arc::default())
    }
}

/// Held by whoever does the work. Dropped without a result, those who wait learn that there is none.
pub(crate) struct Lead<K: Hash + Eq, V> {
    flights: Arc<Mutex<HashMap<K, Waiters<V>>>>,
    /// Taken when the result is given.
    key: Option<K>,
}

impl<K: Hash + Eq + Clone, V: Clone> Flights<K, V> {
    /// Where the result will arrive, and the lead for the first to ask.
    pub(crate) fn join(&self, key: K) -> (oneshot::Receiver<V>, Option<Lead<K, V>>) {
        let (sender, receiver) = oneshot::channel();
        let mut flights = self.0.lock();
        let waiters = flights.entry(key.clone()).or_default();
        waiters.push(sender);
        let first = waiters.len() == 1;
        let lead = first.then(|| Lead {
            flights: Arc::clone(&self.0),
            key: Some(key),
        });
        (receiver, lead)
    }

    /// Where the result of work that is under way will arrive.
    pub(crate) fn join_if_any(&self, key: &K) -> Option<oneshot::Receiver<V>> {
        let mut flights = self.0.lock();
        let waiters = flights.get_mut(key)?;
        let (sender, receiver) = oneshot::channel();
        waiters.push(sender);
        Some(receiver)
    }

    /// Whether work for `key` is under way.
    pub(crate) fn has(&self, key: &K) -> bool {
        self.0.lock().contains_key(key)
    }
}

impl<K: Hash + Eq, V> Lead<K, V> {
    /// Gives the result to all who wait.
    pub(crate) fn finish(mut self, value: V)
    where
        V: Clone,
    {
        for waiter in self.land() {
            // Who has left needs nothing.
            let _ = waiter.send(value.clone());
        }
    }

    fn land(&mut self) -> Waiters<V> {
        let key = self.key.take();
        key.and_then(|key| self.flights.lock().remove(&key))
            .unwrap_or_default()
    }
}

impl<K: Hash + Eq, V> Drop for Lead<K, V> {
    fn drop(&mut self) {
        // Dropping the senders tells those who wait.
        drop(self.land());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn all_who_ask_while_it_is_under_way_get_the_result() {
        let flights = Flights::default();
        let (first, lead) = flights.join("chunk");
        let (second, nobody) = flights.join("chunk");
        assert!(nobody.is_none() && flights.has(&"chunk"));
        let third = flights.join_if_any(&"chunk").expect("under way");
        lead.expect("the first leads").finish(7);
        assert_eq!(first.now_or_never(), Some(Ok(7)));
        assert_eq!(second.now_or_never(), Some(Ok(7)));
        assert_eq!(third.now_or_never(), Some(Ok(7)));
        assert!(!flights.has(&"chunk") && flights.join_if_any(&"chunk").is_none());
    }

    #[test]
    fn work_that_breaks_off_strands_nobody() {
        let flights = Flights::<_, u32>::default();
        let (waiting, lead) = flights.join("chunk");
        drop(lead);
        assert!(waiting.now_or_never().expect("told").is_err());
        assert!(flights.join("chunk").1.is_some(), "the next one leads");
    }
}
