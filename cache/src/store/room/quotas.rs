//! What namespaces may keep, on all disks of the node together.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Holding;
use crate::registry::Namespace;

/// The most bytes of the datasets that only one namespace may read, for those namespaces that have a
/// bound of their own, and what counts for them.
pub(crate) struct Quotas {
    bounds: BTreeMap<Namespace, u64>,
    /// What is kept, on whichever disk.
    holdings: Mutex<Vec<Weak<Holding>>>,
}

impl Quotas {
    pub(crate) fn new(bounds: BTreeMap<Namespace, u64>) -> Quotas {
        Quotas {
            bounds,
            holdings: Mutex::default(),
        }
    }

    /// Whether nobody has a bound of his own.
    pub(crate) fn is_empty(&self) -> bool {
        self.bounds.is_empty()
    }

    /// The namespaces that have one.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &Namespace> {
        self.bounds.keys()
    }

    /// Counts what a version takes, until that is no longer kept.
    pub(super) fn count(&self, holding: &Arc<Holding>) {
        if !self.is_empty() {
            self.holdings.lock().push(Arc::downgrade(holding));
        }
    }

    /// The tenant and its bound, if it has one and `more` bytes beside what is reserved for it exceed it.
    pub(super) fn exceeded(&self, tenant: &Namespace, more: u64) -> Option<(&Namespace, u64)> {
        let (tenant, &bound) = self.bounds.get_key_value(tenant)?;
        let exceeds = self.taken_by(tenant).saturating_add(more) > bound;
        exceeds.then_some((tenant, bound))
    }

    /// Bytes of the versions that only this namespace may read, with those that are being written.
    fn taken_by(&self, tenant: &Namespace) -> u64 {
        let mut taken = 0;
        self.holdings.lock().retain(|holding| {
            let Some(holding) = holding.upgrade() else {
                return false;
            };
            if holding.tenant.lock().as_ref() == Some(tenant) {
                taken += holding.bytes() + holding.reserved.load(SeqCst);
            }
            true
        });
        taken
    }
}
