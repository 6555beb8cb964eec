//! Root CA publisher: every active namespace has the ConfigMap `kube-root-ca.crt`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::namespace::is_active;
use crate::{Change, Key, Object, Plan, Reconciler, View, Watch};

pub const CONFIG_MAP: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

pub struct RootCa {
    /// PEM certificates.
    pub bundle: String,
}

impl Reconciler for RootCa {
    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        let published = Watch::of::<ConfigMap>().field_selector("metadata.name=kube-root-ca.crt");
        vec![Watch::of::<Namespace>(), published]
    }

    fn keys(&self, change: &Change, _view: &View) -> Vec<Key> {
        let map = change.latest::<ConfigMap>().filter(|m| m.name() == CONFIG_MAP);
        let namespace = map.map(|m| m.namespace()).or(change.latest::<Namespace>().map(|n| n.name()));
        namespace.map(Key::cluster).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, view: &View, _now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        if !view.get::<Namespace>(key).is_some_and(|n| is_active(n)) {
            return plan;
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.bundle.clone())]);
        match view.get::<ConfigMap>(&Key::new(&key.name, CONFIG_MAP)) {
            None => plan.create(&ConfigMap {
                metadata: ObjectMeta {
                    name: Some(CONFIG_MAP.into()),
                    namespace: Some(key.name.clone()),
                    annotations: Some([("kubernetes.io/description".into(), DESCRIPTION.into())].into()),
                    ..Default::default()
                },
                data: Some(data),
                ..Default::default()
            }),
            Some(old) => {
                let mut new = (**old).clone();
                new.data = Some(data);
                new.metadata
                    .annotations
                    .get_or_insert_default()
                    .insert("kubernetes.io/description".into(), DESCRIPTION.into());
                plan.update(old.as_ref(), &new);
            }
        }
        plan
    }
}
