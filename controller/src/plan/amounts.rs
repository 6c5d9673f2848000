//! Amounts of what nodes offer and pods ask for.

/// A resource beside those that have a field of their own, as [`Snapshot::resource`] numbers them.
///
/// [`Snapshot::resource`]: super::Snapshot::resource
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(pub u16);

/// What a pod asks for, or what a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    /// Accelerators, whatever their resource is called.
    pub gpus: u32,
    /// RDMA virtual functions or shares of an adapter.
    pub vfs: u32,
    /// Pods: 1 for a pod.
    pub pods: u32,
    /// Thousandths of a processor.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// All other resources, ascending by their number, without zeros.
    pub others: Vec<(ResourceId, u64)>,
}

impl Amounts {
    /// How often `request` fits into this, at most `most`.
    pub fn times(&self, request: &Amounts, most: u32) -> u32 {
        let of = |have: u64, want: u64| match have.checked_div(want) {
            Some(times) => u32::try_from(times).unwrap_or(u32::MAX),
            None => u32::MAX,
        };
        let mut times = most
            .min(of(self.gpus.into(), request.gpus.into()))
            .min(of(self.vfs.into(), request.vfs.into()))
            .min(of(self.pods.into(), request.pods.into()))
            .min(of(self.cpu_milli, request.cpu_milli))
            .min(of(self.memory, request.memory));
        for (resource, want) in &request.others {
            times = times.min(of(self.other(*resource), *want));
        }
        times
    }

    /// Whether `other` is as much or more of each resource.
    pub fn is_within(&self, other: &Amounts) -> bool {
        self.gpus <= other.gpus
            && self.vfs <= other.vfs
            && self.pods <= other.pods
            && self.cpu_milli <= other.cpu_milli
            && self.memory <= other.memory
            && (self.others.iter()).all(|(resource, amount)| *amount <= other.other(*resource))
    }

    /// How much there is of a resource without a field of its own.
    pub fn other(&self, resource: ResourceId) -> u64 {
        self.others
            .binary_search_by_key(&resource, |(id, _)| *id)
            .map_or(0, |index| self.others[index].1)
    }

    /// Takes `request` away `times` times; what is not there becomes nothing.
    pub fn take(&mut self, request: &Amounts, times: u32) {
        self.change(request, times, u32::saturating_sub, u64::saturating_sub);
    }

    /// Adds `request` `times` times.
    pub fn give(&mut self, request: &Amounts, times: u32) {
        self.change(request, times, u32::saturating_add, u64::saturating_add);
    }

    /// The less of both, of each resource.
    pub fn at_most(&mut self, other: &Amounts) {
        self.gpus = self.gpus.min(other.gpus);
        self.vfs = self.vfs.min(other.vfs);
        self.pods = self.pods.min(other.pods);
        self.cpu_milli = self.cpu_milli.min(other.cpu_milli);
        self.memory = self.memory.min(other.memory);
        for (resource, amount) in &mut self.others {
            *amount = (*amount).min(other.other(*resource));
        }
    }

    fn change(
        &mut self,
        request: &Amounts,
        times: u32,
        small: fn(u32, u32) -> u32,
        large: fn(u64, u64) -> u64,
    ) {
        let wide = u64::from(times);
        self.gpus = small(self.gpus, request.gpus.saturating_mul(times));
        self.vfs = small(self.vfs, request.vfs.saturating_mul(times));
        self.pods = small(self.pods, request.pods.saturating_mul(times));
        self.cpu_milli = large(self.cpu_milli, request.cpu_milli.saturating_mul(wide));
        self.memory = large(self.memory, request.memory.saturating_mul(wide));
        for (resource, amount) in &request.others {
            let amount = amount.saturating_mul(wide);
            match self.others.binary_search_by_key(resource, |(id, _)| *id) {
                Ok(index) => self.others[index].1 = large(self.others[index].1, amount),
                Err(index) => self.others.insert(index, (*resource, large(0, amount))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amounts() -> impl Strategy<Value = Amounts> {
        (
            0..64u32,
            0..64u32,
            0..200u32,
            0..1_000_000u64,
            proptest::collection::btree_map(0..4u16, 1..100u64, 0..4),
        )
            .prop_map(|(gpus, vfs, pods, cpu_milli, others)| Amounts {
                gpus,
                vfs,
                pods,
                cpu_milli,
                memory: cpu_milli << 20,
                others: others
                    .into_iter()
                    .map(|(id, amount)| (ResourceId(id), amount))
                    .collect(),
            })
    }

    proptest! {
        #[test]
        fn what_fits_can_be_taken_and_given_back(room in amounts(), request in amounts()) {
            let times = room.times(&request, 100);
            let mut left = room.clone();
            left.take(&request, times);
            prop_assert!(times == 100 || left.times(&request, 1) == 0);
            left.give(&request, times);
            for (resource, amount) in &room.others {
                prop_assert_eq!(left.other(*resource), *amount);
            }
            left.others.clone_from(&room.others);
            prop_assert_eq!(left, room);
        }
    }
}
