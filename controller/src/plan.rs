//! Which gangs start now, and where: a pure function of what the cluster is and what waits.
//!
//! [`plan`] looks at a [`Snapshot`] (every node with what all its pods hold, whoever made them; running
//! gangs; teams; datasets and where they are cached) and at the gangs that wait, and answers with a
//! [`Plan`]: admissions that are all or nothing, what to take back from teams that borrowed, what is held
//! for whom, and for everything else what is in its way. It reads no clock and keeps no state, so that the
//! same code runs in the controller, in `trackbed simulate` and under property tests.
//!
//! The steps are: [`order`] says who is asked first, [`quota`] who may, [`free`] knows what is free and
//! [`place`] puts a gang there, [`reserve`] holds room for one that has waited too long.
//!
//! ```
//! use trackbed_controller::plan::{Amounts, Discipline, Gang, Node, Role, Snapshot, plan};
//!
//! let gpus = |gpus| Amounts { gpus, pods: 1, ..Amounts::default() };
//! let mut snapshot = Snapshot::default();
//! let h100 = snapshot.hardware("H100", 1.0);
//! for name in ["node-a", "node-b"] {
//!     let room = Amounts { pods: 110, ..gpus(8) };
//!     snapshot.nodes.push(Node::new(name, h100, room));
//! }
//! let team = snapshot.team("vision");
//! let gang = |name: &str, count| Gang::new(name, team, 0, vec![Role::new("worker", count, gpus(8))]);
//! let queue = [gang("wide", 3), gang("fits", 2)];
//!
//! let plan = plan(&snapshot, &queue, 60_000, &Discipline::default());
//! assert_eq!(plan.admissions.len(), 1);
//! assert_eq!(queue[plan.admissions[0].gang].name, "fits");
//! ```

mod amounts;
mod constraint;
mod decide;
mod free;
mod gang;
mod hopeless;
mod order;
mod place;
mod quota;
mod reclaim;
mod reserve;
mod snapshot;

pub use amounts::{Amounts, ResourceId};
pub use constraint::{Constraint, Effect, Operator, Requirement, Taint, Term, Toleration};
pub use decide::{Admission, Blocked, Plan, Reclaim, Reservation, plan};
pub use gang::{DatasetNeed, Gang, Role, Topology};
pub use order::{Ageing, Discipline, Peer};
pub use quota::{Quota, Team};
pub use snapshot::{
    CachedDataset, DomainId, Hardware, HardwareId, Node, NodeId, Origin, OriginId, Running,
    Snapshot, TeamId, Zone,
};

/// Milliseconds: since the Unix epoch if it is a time. Signed, so that a clock that jumps back makes a
/// negative age and no overflow.
pub type Millis = i64;

#[cfg(test)]
mod tests;
