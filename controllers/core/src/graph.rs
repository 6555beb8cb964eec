//! Owners and dependents of every object of every resource, as metadata only.
//!
//! The runner feeds it from one informer per discovered resource. Like every cache it may lag:
//! whoever deletes on its word asks the server first (`Expectation`).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::object::{Gvr, Key};
use crate::plan::{Precondition, Target};

/// A resource that the server's discovery lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiResource {
    pub gvr: Gvr,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl ApiResource {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// An owner reference, shortened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controls: bool,
    pub blocks: bool,
}

/// One object's metadata, as much as garbage collection needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub resource: Gvr,
    pub key: Key,
    pub uid: String,
    pub resource_version: String,
    pub owners: Vec<Owner>,
    pub finalizers: Vec<String>,
    pub deleting: bool,
}

impl Node {
    pub fn new(resource: &Gvr, meta: &ObjectMeta) -> Node {
        let owners = meta.owner_references.iter().flatten().map(|o| Owner {
            api_version: o.api_version.clone(),
            kind: o.kind.clone(),
            name: o.name.clone(),
            uid: o.uid.clone(),
            controls: o.controller == Some(true),
            blocks: o.block_owner_deletion == Some(true),
        });
        Node {
            resource: resource.clone(),
            key: Key {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            owners: owners.collect(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|f| f == name)
    }

    pub fn target(&self) -> Target {
        Target { resource: self.resource.clone(), key: self.key.clone(), subresource: None }
    }

    /// The very object, unchanged since it was seen.
    pub fn unchanged(&self) -> Precondition {
        Precondition { uid: Some(self.uid.clone()), resource_version: Some(self.resource_version.clone()) }
    }
}

/// How much of a resource a namespace holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub count: usize,
    /// Those not yet being deleted.
    pub untouched: usize,
    /// Objects by finalizer.
    pub finalizers: BTreeMap<String, usize>,
}

type Place = (Gvr, Key);

/// All nodes, by place, by uid and by owner; and the resources they belong to.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: BTreeMap<Place, Node>,
    uids: BTreeMap<String, Place>,
    dependents: BTreeMap<String, BTreeSet<Place>>,
    resources: Vec<ApiResource>,
    /// Whether discovery answered for every group, and every listable resource has been listed.
    pub complete: bool,
}

impl Graph {
    pub fn resources(&self) -> &[ApiResource] {
        &self.resources
    }

    pub fn set_resources(&mut self, resources: Vec<ApiResource>) {
        self.resources = resources;
    }

    /// The resource that an owner reference's apiVersion and kind name.
    pub fn resource_of(&self, api_version: &str, kind: &str) -> Option<&ApiResource> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let same_group = |r: &&ApiResource| r.gvr.group == group && r.kind == kind;
        let exact = self.resources.iter().find(|r| same_group(r) && r.gvr.version == version);
        exact.or_else(|| self.resources.iter().find(same_group))
    }

    pub fn by_uid(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(self.uids.get(uid)?)
    }

    pub fn get(&self, resource: &Gvr, key: &Key) -> Option<&Node> {
        self.nodes.get(&(resource.clone(), key.clone()))
    }

    /// Objects with an owner reference to this uid.
    pub fn dependents<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Node> + use<'a> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|place| self.nodes.get(place))
    }

    pub fn keys(&self, resource: &Gvr) -> Vec<Key> {
        let first = (resource.clone(), Key::default());
        self.nodes
            .range(first..)
            .take_while(|((r, _), _)| r == resource)
            .map(|((_, k), _)| k.clone())
            .collect()
    }

    /// What a namespace holds of a resource.
    pub fn contents(&self, resource: &Gvr, namespace: &str) -> Contents {
        let mut contents = Contents::default();
        let first = (resource.clone(), Key::new(namespace, ""));
        let here = |(r, k): &Place| r == resource && k.namespace == namespace;
        for (_, node) in self.nodes.range(first..).take_while(|(place, _)| here(place)) {
            contents.count += 1;
            contents.untouched += usize::from(!node.deleting);
            for finalizer in &node.finalizers {
                *contents.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
        contents
    }

    pub fn insert(&mut self, node: Node) -> Option<Node> {
        let old = self.remove(&node.resource, &node.key);
        let place = (node.resource.clone(), node.key.clone());
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(place.clone());
        }
        self.uids.insert(node.uid.clone(), place.clone());
        self.nodes.insert(place, node);
        old
    }

    pub fn remove(&mut self, resource: &Gvr, key: &Key) -> Option<Node> {
        let place = (resource.clone(), key.clone());
        let old = self.nodes.remove(&place)?;
        for owner in &old.owners {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(&place);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        if self.uids.get(&old.uid) == Some(&place) {
            self.uids.remove(&old.uid);
        }
        Some(old)
    }
}

/// A node appeared, changed, or went.
#[derive(Clone, Debug)]
pub struct GraphChange {
    pub old: Option<Node>,
    pub new: Option<Node>,
}
