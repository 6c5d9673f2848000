//! A world for one look, without watches.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use super::world::{Change, Kind, World};
use crate::api::{CacheNode, Caffe2Job, Dataset, KubeflowCaffe2Job};

/// What the API server is asked for at a time.
const PAGE: u32 = 500;

/// All objects of a kind, page by page.
pub async fn list_all<K>(client: &Client) -> kube::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let mut found = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let listed = api.list(&page).await?;
        found.extend(listed.items);
        match listed.metadata.continue_ {
            Some(next) if !next.is_empty() => page = page.continue_token(&next),
            _ => return Ok(found),
        }
    }
}

impl World {
    /// What the API server has now, to look at.
    pub async fn fetch(client: &Client) -> kube::Result<World> {
        let mut world = World::default();
        world.list::<Node>(client).await?;
        world.list::<Dataset>(client).await?;
        world.list::<CacheNode>(client).await?;
        world.list::<Caffe2Job>(client).await?;
        world.list::<KubeflowCaffe2Job>(client).await?;
        world.list::<Pod>(client).await?;
        Ok(world)
    }

    async fn list<K>(&mut self, client: &Client) -> kube::Result<()>
    where
        K: Kind + DeserializeOwned + Debug,
    {
        for object in list_all::<K>(client).await? {
            self.apply(Change::There(object));
        }
        Ok(())
    }
}
