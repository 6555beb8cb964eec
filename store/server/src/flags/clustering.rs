//! Flags of forming, finding and changing the cluster, and of compacting its history.

use std::time::Duration;

use super::Kind::{Bool, Duration as Time, Text};
use super::{Flag, flag, go, urls};
use crate::config::ClusterState;

/// Discovery's flags as given.
pub(super) struct DiscoveryDraft {
    pub token: String,
    pub endpoints: Vec<String>,
    pub request_timeout: Duration,
    pub insecure_transport: bool,
    pub insecure_skip_verify: bool,
    pub cert: String,
    pub key: String,
    pub cacert: String,
    pub user: String,
    pub password: String,
    pub srv: String,
    pub srv_name: String,
}

impl Default for DiscoveryDraft {
    fn default() -> Self {
        DiscoveryDraft {
            token: String::new(),
            endpoints: Vec::new(),
            request_timeout: Duration::from_secs(5),
            insecure_transport: true,
            insecure_skip_verify: false,
            cert: String::new(),
            key: String::new(),
            cacert: String::new(),
            user: String::new(),
            password: String::new(),
            srv: String::new(),
            srv_name: String::new(),
        }
    }
}

macro_rules! text {
    ($name:literal, $default:literal, $help:literal, $($field:ident).+) => {
        flag($name, Text, $default, $help, |d, v| {
            v.clone_into(&mut d.$($field).+);
            Ok(())
        })
    };
}

pub(super) const FLAGS: &[Flag] = &[
    flag(
        "initial-advertise-peer-urls",
        Text,
        "http://localhost:2380",
        "Where peers find this member.",
        |d, v| {
            d.config.initial_advertise_peer_urls = urls(v)?;
            Ok(())
        },
    ),
    flag(
        "advertise-client-urls",
        Text,
        "http://localhost:2379",
        "Where clients find this member.",
        |d, v| {
            d.config.advertise_client_urls = urls(v)?;
            Ok(())
        },
    ),
    flag(
        "initial-cluster",
        Text,
        "default=http://localhost:2380",
        "All members, as name=peer-url.",
        |d, v| {
            d.initial_cluster = Some(v.to_owned());
            Ok(())
        },
    ),
    flag("initial-cluster-state", Text, "new", "new, or existing to join a running cluster.", |d, v| {
        d.config.initial_cluster_state = match v {
            "new" => ClusterState::New,
            "existing" => ClusterState::Existing,
            _ => return Err("invalid value".to_owned()),
        };
        Ok(())
    }),
    text!("initial-cluster-token", "etcd-cluster", "Keeps clusters apart.", config.initial_cluster_token),
    text!("discovery-token", "", "Which cluster to form through the discovery service.", discovery.token),
    flag("discovery-endpoints", Text, "", "The discovery service's client URLs.", |d, v| {
        d.discovery.endpoints = v.split(',').map(str::to_owned).collect();
        Ok(())
    }),
    flag("discovery-dial-timeout", Time, "2s", "For connecting to the discovery service.", |_, v| {
        go::duration(v).map(|_| ())
    }),
    flag("discovery-request-timeout", Time, "5s", "For one request to it.", |d, v| {
        d.discovery.request_timeout = go::duration(v)?;
        Ok(())
    }),
    flag("discovery-keepalive-time", Time, "2s", "Silence after which it is pinged.", |_, v| {
        go::duration(v).map(|_| ())
    }),
    flag("discovery-keepalive-timeout", Time, "6s", "How long it may take to answer a ping.", |_, v| {
        go::duration(v).map(|_| ())
    }),
    flag("discovery-insecure-transport", Bool, "true", "Speak to it without TLS.", |d, v| {
        d.discovery.insecure_transport = go::truth(v)?;
        Ok(())
    }),
    flag("discovery-insecure-skip-tls-verify", Bool, "false", "Do not check its certificate.", |d, v| {
        d.discovery.insecure_skip_verify = go::truth(v)?;
        Ok(())
    }),
    text!("discovery-cert", "", "Our certificate for it.", discovery.cert),
    text!("discovery-key", "", "Our key for it.", discovery.key),
    text!("discovery-cacert", "", "The authority of its certificate.", discovery.cacert),
    text!("discovery-user", "", "User, or user:password.", discovery.user),
    text!("discovery-password", "", "Password of the user.", discovery.password),
    flag("discovery-fallback", Text, "exit", "What to do when discovery fails: exit.", |d, v| {
        if !matches!(v, "exit" | "proxy") {
            return Err("invalid value".to_owned());
        }
        v.clone_into(&mut d.fallback);
        Ok(())
    }),
    text!("discovery-srv", "", "Domain whose SRV records name the members.", discovery.srv),
    text!("discovery-srv-name", "", "Suffix of the SRV service's name.", discovery.srv_name),
    flag("strict-reconfig-check", Bool, "true", "Refuse changes that would lose the quorum.", |d, v| {
        d.config.strict_reconfig_check = go::truth(v)?;
        Ok(())
    }),
    flag("pre-vote", Bool, "true", "Ask before an election.", |_, v| go::truth(v).map(|_| ())),
    text!(
        "auto-compaction-retention",
        "0",
        "History kept: a duration, hours, or revisions.",
        compaction_retention
    ),
    text!("auto-compaction-mode", "periodic", "periodic or revision.", compaction_mode),
    flag("v2-deprecation", Text, "write-only", "Stage of removing the v2 store.", |_, v| match v {
        "write-only" | "write-only-skip-check" | "write-only-drop-data" | "gone" => Ok(()),
        _ => Err("invalid value".to_owned()),
    }),
    flag("force-new-cluster", Bool, "false", "Make a cluster of this member alone.", |d, v| {
        d.config.force_new_cluster = go::truth(v)?;
        Ok(())
    }),
];
