//! What request steps, authorization and token checks see: the watch caches.

use std::sync::Arc;

use keelson_api::resource;
use keelson_apiserver_core::View;
use serde_json::Value;

use crate::hub::Hub;

/// The caches as a `View`.
pub struct CacheView(pub Arc<Hub>);

impl CacheView {
    fn cache(&self, group: &str, resource: &str) -> Option<Arc<crate::cache::Cache>> {
        match resource::find_preferred(group, resource) {
            Some(found) => self.0.cache(found.storage.as_deref()?),
            // Custom resources are not in the table; where they are stored is known.
            None if group.contains('.') => self.0.cache(&format!("/registry/{group}/{resource}")),
            None => None,
        }
    }
}

impl View for CacheView {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let cache = self.cache(group, resource)?;
        let key = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        cache.get(&key).map(|object| cache.decoded(&object))
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let Some(cache) = self.cache(group, resource) else { return vec![] };
        let prefix = namespace.filter(|n| !n.is_empty()).map(|n| format!("{n}/")).unwrap_or_default();
        cache.list(&prefix, "").0.iter().map(|object| cache.decoded(object)).collect()
    }

    fn claimed(&self, key: &str) -> bool {
        self.0.claimed(key)
    }
}
