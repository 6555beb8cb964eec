//! ClusterRole aggregation: a role with an aggregation rule has the rules of the roles it selects.

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

use crate::labels::matches;
use crate::{Change, Key, Object, Plan, Reconciler, View, Watch};

pub struct ClusterRoleAggregation;

impl Reconciler for ClusterRoleAggregation {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<ClusterRole>()]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if change.latest::<ClusterRole>().is_none() {
            return Vec::new();
        }
        let aggregated = view.of::<ClusterRole>().iter().filter(|r| r.aggregation_rule.is_some());
        aggregated.map(|r| Key::of(r.as_ref())).collect()
    }

    fn reconcile(&self, key: &Key, view: &View, _now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let Some(role) = view.get::<ClusterRole>(key) else { return plan };
        let Some(selectors) = role.aggregation_rule.as_ref().and_then(|a| a.cluster_role_selectors.as_ref())
        else {
            return plan;
        };
        let mut rules: Vec<PolicyRule> = Vec::new();
        for other in view.of::<ClusterRole>().iter().filter(|r| r.name() != role.name()) {
            if selectors.iter().any(|s| matches(s, other.metadata.labels.as_ref())) {
                for rule in other.rules.iter().flatten() {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
        if role.rules.as_deref().unwrap_or_default() != rules.as_slice() {
            let mut new = (**role).clone();
            new.rules = Some(rules);
            plan.update(role.as_ref(), &new);
        }
        plan
    }
}
