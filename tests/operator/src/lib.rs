//! An operator as a user would write it: a `Website` (a custom resource) is a ConfigMap for each of
//! its pages. `tests/checked.rs` checks it against crashes, old views and everything else that `keelson-models`
//! does to a controller; docs/checking-controllers.md explains how.

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_controllers_core::{Change, Key, Object, Plan, Precondition, Reconciler, View, Watch};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Website {
    pub metadata: ObjectMeta,
    pub spec: WebsiteSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<WebsiteStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WebsiteSpec {
    /// The pages' names, each a ConfigMap of its own.
    pub pages: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WebsiteStatus {
    pub published: usize,
}

impl k8s_openapi::Resource for Website {
    const API_VERSION: &'static str = "example.com/v1";
    const GROUP: &'static str = "example.com";
    const KIND: &'static str = "Website";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "websites";
    type Scope = NamespaceResourceScope;
}

impl k8s_openapi::Metadata for Website {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The operator.
pub struct Websites;

impl Reconciler for Websites {
    fn name(&self) -> &'static str {
        "websites"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<Website>(), Watch::of::<ConfigMap>()]
    }

    fn keys(&self, change: &Change, _: &View) -> Vec<Key> {
        if let Some(site) = change.latest::<Website>() {
            return vec![Key::of(site)];
        }
        let page = change.latest::<ConfigMap>();
        page.and_then(|page| Some(Key::new(page.namespace(), &page.controller()?.name))).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, view: &View, _: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let Some(site) = view.get::<Website>(key) else { return plan };
        let there: Vec<_> = view.of::<ConfigMap>().controlled_by(site.uid()).collect();
        for page in &site.spec.pages {
            if !there.iter().any(|map| map.name() == name_of(site, page)) {
                plan.create(&page_of(site, page));
            }
        }
        for map in &there {
            if !site.spec.pages.iter().any(|page| map.name() == name_of(site, page)) {
                plan.delete(map.as_ref(), Precondition::same(map.as_ref()));
            }
        }
        let mut new = (**site).clone();
        new.status = Some(WebsiteStatus { published: there.len() });
        plan.update_status(site.as_ref(), &new);
        plan
    }
}

fn name_of(site: &Website, page: &str) -> String {
    format!("{}-{page}", site.name())
}

fn page_of(site: &Website, page: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name_of(site, page)),
            namespace: Some(site.namespace().to_owned()),
            owner_references: Some(vec![site.owner_reference()]),
            ..ObjectMeta::default()
        },
        data: Some([("index.html".to_owned(), format!("<h1>{page}</h1>"))].into()),
        ..ConfigMap::default()
    }
}
