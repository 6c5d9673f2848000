//! The pods that a job's attempt is made of, and what they are called.

use super::{Job, JobKey};
use crate::api::caffe2job::Role;

/// The longest a Service's name may be.
const MAX_LABEL: usize = 63;

/// A pod of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Member<'j> {
    /// Its role.
    pub role: &'j Role,
    /// Its number in the role.
    pub index: i32,
    /// Its number in the job: SHARD_ID.
    pub shard: i32,
}

/// All pods of an attempt, by rising shard.
pub fn members(job: &Job) -> impl Iterator<Item = Member<'_>> {
    let roles = job.spec.roles.iter();
    let pods = roles.flat_map(|role| (0..role.replicas).map(move |index| (role, index)));
    (0..)
        .zip(pods)
        .map(|(shard, (role, index))| Member { role, index, shard })
}

/// The name of a member's pod. Read from its end it says which job's it is: roles have no hyphen.
pub fn pod_name(key: &JobKey, attempt: i64, member: &Member<'_>) -> String {
    format!(
        "{}-{attempt}-{}-{}",
        key.name, member.role.name, member.index
    )
}

/// The host name of a member's pod, below the job's Service.
pub(super) fn host_name(role: &str, index: i32) -> String {
    format!("{role}-{index}")
}

/// The job's Service, named so that no other job's is, nor one that a user made.
pub fn service_name(job: &Job) -> String {
    let short = job.uid.get(..8).unwrap_or(&job.uid);
    let name = format!("{}-{short}", job.key.name);
    let label = name.len() <= MAX_LABEL
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.contains('.');
    match label {
        true => name,
        false => format!("gang-{}", job.uid),
    }
}

/// What a host of the job is called by all its pods.
pub(super) fn address(job: &Job, host: &str) -> String {
    format!("{host}.{}.{}.svc", service_name(job), job.key.namespace)
}

/// The index of the chief among [`members`].
pub(super) fn chief(job: &Job) -> usize {
    let wanted = job.spec.chief.as_ref();
    let at = wanted.and_then(|chief| {
        members(job).position(|it| it.role.name == chief.role && it.index == chief.index)
    });
    at.unwrap_or(0)
}
