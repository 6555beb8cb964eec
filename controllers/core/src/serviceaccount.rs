//! ServiceAccount: every active namespace has a `default` account.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::namespace::is_active;
use crate::{Change, Key, Object, Plan, Reconciler, View, Watch};

pub struct ServiceAccounts;

impl Reconciler for ServiceAccounts {
    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<Namespace>(), Watch::of::<ServiceAccount>()]
    }

    fn keys(&self, change: &Change, _view: &View) -> Vec<Key> {
        let account = change.latest::<ServiceAccount>().filter(|a| a.name() == "default");
        let namespace = account.map(|a| a.namespace()).or(change.latest::<Namespace>().map(|n| n.name()));
        namespace.map(Key::cluster).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, view: &View, _now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let active = view.get::<Namespace>(key).is_some_and(|n| is_active(n));
        if active && view.get::<ServiceAccount>(&Key::new(&key.name, "default")).is_none() {
            plan.create(&ServiceAccount {
                metadata: ObjectMeta {
                    name: Some("default".into()),
                    namespace: Some(key.name.clone()),
                    ..Default::default()
                },
                ..Default::default()
            });
        }
        plan
    }
}
