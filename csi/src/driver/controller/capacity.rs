//! How large a volume is said to be. A read-only view of a dataset takes no room, so any size may
//! be asked for; one that is agreed on stays agreed on.

use trackbed_proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, GetCapacityRequest, GetCapacityResponse,
};

use super::{ControllerService, missing};
use crate::driver::error::VolumeError;
use crate::driver::ledger::volume_key;
use crate::driver::spec::Said;
use crate::driver::volume::Access;

/// A request's capacity range, in bytes. 0 means not said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    required: u64,
    limit: u64,
}

impl Range {
    pub(super) fn parse(range: Option<CapacityRange>) -> Result<Range, VolumeError> {
        let CapacityRange {
            required_bytes,
            limit_bytes,
        } = range.unwrap_or_default();
        let bytes = |field: &str, bytes: i64| {
            u64::try_from(bytes).map_err(|_| {
                VolumeError::Invalid(format!("capacity_range's {field} is negative: {bytes}"))
            })
        };
        let range = Range {
            required: bytes("required_bytes", required_bytes)?,
            limit: bytes("limit_bytes", limit_bytes)?,
        };
        if range.limit != 0 && range.limit < range.required {
            return Err(VolumeError::OutOfRange(format!(
                "capacity_range asks for at least {required_bytes} bytes and for at most {limit_bytes}"
            )));
        }
        Ok(range)
    }

    /// Whether a volume of this size is what is asked for.
    pub(super) fn holds(self, capacity: u64) -> bool {
        capacity >= self.required && (self.limit == 0 || capacity <= self.limit)
    }

    /// The size of a volume that shows `bytes` of data: what is required, or more where the data
    /// is more.
    pub(super) fn settle(self, bytes: u64) -> Result<u64, VolumeError> {
        let capacity = self.required.max(bytes);
        if self.holds(capacity) {
            Ok(capacity)
        } else {
            Err(VolumeError::OutOfRange(format!(
                "the dataset has {bytes} bytes, and the volume may have at most {}: raise the limit",
                self.limit
            )))
        }
    }
}

impl ControllerService {
    /// Raises the size that a volume is said to have.
    pub(super) async fn expand(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<i64, VolumeError> {
        let id = request.volume_id;
        if id.is_empty() {
            return Err(missing("volume_id"));
        }
        if request.capacity_range.is_none() {
            return Err(missing("capacity_range"));
        }
        let range = Range::parse(request.capacity_range)?;
        if request.volume_capability.is_some() {
            Access::parse(request.volume_capability.as_ref())?;
        }
        self.blocking(move |service| {
            let key = volume_key(&id);
            let volume = key.map(|key| service.ledger.volumes.get(key)).transpose()?;
            let Some(mut volume) = volume.flatten() else {
                return Err(VolumeError::NotFound(format!(
                    "there is no volume {id:?} that was created here"
                )));
            };
            let capacity = range.settle(volume.bytes.max(volume.capacity))?;
            if capacity != volume.capacity {
                volume.capacity = capacity;
                service.ledger.volumes.replace(&volume)?;
            }
            Ok(to_csi(capacity))
        })
        .await
    }

    /// What this node's cache can hold. A volume of a larger dataset works all the same.
    pub(super) async fn capacity(
        &self,
        request: GetCapacityRequest,
    ) -> Result<GetCapacityResponse, VolumeError> {
        Said::parse("GetCapacity", "parameters", &request.parameters)?;
        let capabilities = &request.volume_capabilities;
        let can = capabilities
            .iter()
            .all(|capability| Access::parse(Some(capability)).is_ok());
        let available = match can {
            true => {
                self.blocking(|service| Ok(service.datasets.capacity()))
                    .await?
            }
            // Of what cannot be had there is none.
            false => 0,
        };
        Ok(GetCapacityResponse {
            available_capacity: to_csi(available),
            maximum_volume_size: None,
            minimum_volume_size: None,
        })
    }
}

/// CSI counts bytes in `int64`.
pub(super) fn to_csi(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(required_bytes: i64, limit_bytes: i64) -> Result<Range, VolumeError> {
        Range::parse(Some(CapacityRange {
            required_bytes,
            limit_bytes,
        }))
    }

    #[test]
    fn a_volume_has_what_is_required_and_room_for_its_data() {
        assert_eq!(range(10, 0).expect("valid").settle(3).expect("fits"), 10);
        assert_eq!(range(10, 10).expect("valid").settle(3).expect("fits"), 10);
        assert_eq!(range(10, 0).expect("valid").settle(30).expect("fits"), 30);
        assert_eq!(Range::default().settle(7).expect("fits"), 7);
        range(10, 20)
            .expect("valid")
            .settle(30)
            .expect_err("too much");
        for (required, limit) in [(-1, 0), (0, -1), (2, 1)] {
            range(required, limit).expect_err("refused");
        }
    }

    #[test]
    fn another_range_holds_the_same_volume_if_its_size_is_within() {
        let ten = range(10, 10).expect("valid").settle(0).expect("fits");
        assert!(range(5, 0).expect("valid").holds(ten));
        assert!(Range::default().holds(ten));
        assert!(!range(20, 20).expect("valid").holds(ten));
        assert!(!range(0, 5).expect("valid").holds(ten));
    }
}
