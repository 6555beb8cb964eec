//! A pod's resolver configuration and its `/etc/hosts`.

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use super::naming;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// The node's own resolv.conf, read.
pub fn parse_resolv_conf(text: &str) -> Resolver {
    let mut out = Resolver::default();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        match words.next() {
            Some("nameserver") => out.servers.extend(words.next().map(String::from)),
            Some("search" | "domain") => {
                out.searches = words.map(|w| w.trim_end_matches('.').to_string()).collect()
            }
            Some("options") => out.options = words.map(String::from).collect(),
            _ => {}
        }
    }
    out
}

/// The pod's resolver by its `dnsPolicy` and `dnsConfig`. Without a cluster DNS, `ClusterFirst` falls back to the node's.
pub fn resolver(pod: &Pod, cluster_dns: &[String], cluster_domain: &str, node: &Resolver) -> Resolver {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !naming::host_network(pod),
        _ => false,
    };
    let mut out = if policy == "None" {
        Resolver::default()
    } else if cluster && !cluster_dns.is_empty() {
        let mut searches = vec![
            format!("{}.svc.{cluster_domain}", naming::namespace(pod)),
            format!("svc.{cluster_domain}"),
            cluster_domain.to_string(),
        ];
        searches.extend(node.searches.iter().cloned());
        Resolver { servers: cluster_dns.to_vec(), searches, options: vec!["ndots:5".into()] }
    } else {
        node.clone()
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        out.servers.extend(config.nameservers.iter().flatten().cloned());
        out.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            out.options.retain(|o| o.split(':').next() != Some(name));
            out.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_string(),
            });
        }
    }
    dedup(&mut out.servers, 3);
    dedup(&mut out.searches, 32);
    out
}

fn dedup(list: &mut Vec<String>, most: usize) {
    let mut kept: Vec<String> = Vec::with_capacity(list.len());
    for item in list.drain(..) {
        if !item.is_empty() && !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept.truncate(most);
    *list = kept;
}

/// The managed hosts file of a pod with its own network.
pub fn hosts_file(pod: &Pod, pod_ips: &[String], cluster_domain: &str) -> String {
    let mut out = String::from("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n");
    out.push_str(
        "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n",
    );
    out.push_str("fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
    let host = naming::hostname(pod);
    for ip in pod_ips {
        match naming::subdomain_fqdn(pod, cluster_domain) {
            Some(fqdn) => out.push_str(&format!("{ip}\t{fqdn}\t{host}\n")),
            None => out.push_str(&format!("{ip}\t{host}\n")),
        }
    }
    out.push_str(&aliases(pod));
    out
}

/// The hosts file of a host-network pod: the node's own with the pod's aliases.
pub fn host_network_hosts(pod: &Pod, node_hosts: &str) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}{}", aliases(pod))
}

fn aliases(pod: &Pod) -> String {
    let list: &[HostAlias] = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if list.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n# Entries added by HostAliases.\n");
    for alias in list {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        out.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata":{"name":"p","namespace":"a"},"spec":spec})).unwrap()
    }

    #[test]
    fn policies() {
        let node = parse_resolv_conf("# x\nnameserver 9.9.9.9\nsearch lan.\noptions edns0\n");
        let dns = ["10.96.0.10".to_string()];
        let first = resolver(&pod(json!({"containers":[]})), &dns, "cluster.local", &node);
        assert_eq!(first.servers, dns);
        assert_eq!(first.searches, ["a.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"]);
        let host = resolver(&pod(json!({"containers":[],"hostNetwork":true})), &dns, "cluster.local", &node);
        assert_eq!(host, node);
        let none = json!({"containers":[],"dnsPolicy":"None",
            "dnsConfig":{"nameservers":["1.1.1.1"],"options":[{"name":"ndots","value":"2"},{"name":"edns0"}]}});
        let none = resolver(&pod(none), &dns, "cluster.local", &node);
        assert_eq!(
            (none.servers, none.options),
            (vec!["1.1.1.1".into()], vec!["ndots:2".to_string(), "edns0".into()])
        );
    }

    #[test]
    fn hosts_names_the_pod_and_its_aliases() {
        let spec = json!({"containers":[],"hostname":"h","subdomain":"s","hostAliases":[{"ip":"1.2.3.4","hostnames":["x","y"]}]});
        let text = hosts_file(&pod(spec), &["10.0.0.5".into()], "cluster.local");
        assert!(text.contains("10.0.0.5\th.s.a.svc.cluster.local\th\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\tx\ty\n"), "{text}");
    }
}
