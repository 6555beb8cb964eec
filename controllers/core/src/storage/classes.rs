//! StorageClasses: the default one, and the built-in `local-path`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::sync::Arc;

use super::PROVISIONER;
use crate::{Change, Key, Object, Plan, Reconciler, View, Watch};

pub const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
pub const LOCAL_PATH: &str = "local-path";

/// The class of claims that name none; of several defaults the youngest.
pub fn default_class(view: &View) -> Option<&Arc<StorageClass>> {
    let defaults = view.of::<StorageClass>().iter().filter(|c| c.annotation(DEFAULT) == Some("true"));
    defaults.max_by_key(|c| (c.metadata.creation_timestamp.clone().map(|t| t.0), std::cmp::Reverse(c.name())))
}

/// Makes the class `local-path`, the default unless there already is one.
pub struct LocalPathClass;

impl Reconciler for LocalPathClass {
    fn name(&self) -> &'static str {
        "local-path-class-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        // kube-system always exists and so brings the first look.
        vec![Watch::of::<StorageClass>(), Watch::of::<Namespace>()]
    }

    fn keys(&self, change: &Change, _view: &View) -> Vec<Key> {
        let class = change.latest::<StorageClass>().is_some_and(|c| c.name() == LOCAL_PATH);
        let start = change.latest::<Namespace>().is_some_and(|n| n.name() == "kube-system");
        if class || start { vec![Key::cluster(LOCAL_PATH)] } else { Vec::new() }
    }

    fn reconcile(&self, key: &Key, view: &View, _now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        if view.get::<StorageClass>(key).is_none() {
            let first = default_class(view).is_none();
            plan.create(&StorageClass {
                metadata: ObjectMeta {
                    name: Some(LOCAL_PATH.to_owned()),
                    annotations: first.then(|| [(DEFAULT.to_owned(), "true".to_owned())].into()),
                    ..Default::default()
                },
                provisioner: PROVISIONER.to_owned(),
                reclaim_policy: Some("Delete".into()),
                volume_binding_mode: Some("WaitForFirstConsumer".into()),
                ..Default::default()
            });
        }
        plan
    }
}
