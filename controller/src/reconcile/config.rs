//! What a controller is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A configuration that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A team is there twice.
    #[error("teams has {0:?} twice: keep one of them")]
    TeamTwice(String),
    /// A time of nothing.
    #[error("{0} is {1}: give at least {2}")]
    TooLittle(&'static str, i64, i64),
}

/// What a controller is told. Every field has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ControllerConfig {
    /// Teams and their quotas. Where there are none, any name is a team, without a quota.
    pub teams: Vec<TeamConfig>,
    /// Kinds of hardware, and how fast they are beside each other.
    pub hardware: Vec<HardwareConfig>,
    /// The label of nodes that says which hardware they have.
    pub hardware_label: String,
    /// Resources that are accelerators.
    pub accelerators: Vec<String>,
    /// The resource that is RDMA devices, which have to be on the side of the accelerators.
    pub rdma_resource: String,
    /// How long pods may take to get to their nodes, in seconds, at first.
    pub bind_seconds: i64,
    /// How long after a failure the next attempt begins, in seconds, at first.
    pub retry_seconds: i64,
    /// The image of the redis that is started for jobs.
    pub redis_image: String,
}

/// A team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TeamConfig {
    /// Its name, which jobs give as spec.team.
    pub name: String,
    /// Its quotas by hardware. None at all: bounded by the cluster alone.
    #[serde(default)]
    pub quotas: BTreeMap<String, TeamQuota>,
}

/// Accelerators of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TeamQuota {
    /// What the team is sure of.
    pub nominal: u32,
    /// What it may use beyond while others leave it. Without it, whatever is free.
    #[serde(default)]
    pub borrow: Option<u32>,
}

/// A kind of hardware.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HardwareConfig {
    /// The value of the hardware label.
    pub name: String,
    /// How fast it is, 1 being what expected run times are given for.
    pub speed: f64,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        let settings = crate::job::Settings::default();
        ControllerConfig {
            teams: Vec::new(),
            hardware: Vec::new(),
            hardware_label: "nvidia.com/gpu.product".to_owned(),
            accelerators: ["nvidia.com/gpu", "amd.com/gpu"].map(str::to_owned).into(),
            rdma_resource: "trackbed.io/rdma".to_owned(),
            bind_seconds: settings.bind_seconds,
            retry_seconds: settings.retry_seconds,
            redis_image: settings.redis_image,
        }
    }
}

impl ControllerConfig {
    /// Refuses what cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut names: Vec<_> = self.teams.iter().map(|team| &team.name).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::TeamTwice(twice[0].clone()));
        }
        for (name, seconds) in [
            ("bind-seconds", self.bind_seconds),
            ("retry-seconds", self.retry_seconds),
        ] {
            if seconds < 1 {
                return Err(ConfigError::TooLittle(name, seconds, 1));
            }
        }
        Ok(())
    }

    /// The settings of jobs' steps.
    pub fn settings(&self) -> crate::job::Settings {
        let usual = crate::job::Settings::default();
        crate::job::Settings {
            bind_seconds: self.bind_seconds,
            bind_most_seconds: usual.bind_most_seconds.max(self.bind_seconds),
            retry_seconds: self.retry_seconds,
            retry_most_seconds: usual.retry_most_seconds.max(self.retry_seconds),
            redis_image: self.redis_image.clone(),
            ..usual
        }
    }

    /// Why a job's team is none, if teams are configured.
    pub fn unknown_team(&self, team: &str) -> Option<String> {
        let known = self.teams.is_empty() || self.teams.iter().any(|it| it.name == team);
        (!known).then(|| {
            format!(
                "there is no team {team:?}: name one of the controller's teams in spec.team, or have it added"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_says_what_is_wrong_with_it() {
        let mut config = ControllerConfig::default();
        config.check().expect("the default is one");
        assert!(config.unknown_team("any").is_none());
        let team = |name: &str| TeamConfig {
            name: name.to_owned(),
            quotas: BTreeMap::new(),
        };
        config.teams = vec![team("a"), team("b")];
        assert!(
            config
                .unknown_team("c")
                .is_some_and(|why| why.contains("\"c\""))
        );
        config.teams.push(team("a"));
        let error = config.check().expect_err("twice");
        assert!(error.to_string().contains("\"a\""), "{error}");
        config.teams.clear();
        config.bind_seconds = 0;
        assert!(config.check().is_err());
    }
}
