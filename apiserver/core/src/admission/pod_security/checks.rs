//! The checks of the Pod Security Standards. Each is a function below and a line of `CHECKS`.

use super::Level;
use crate::value::{at, flag, int, items, text};
use serde_json::Value;
use std::collections::BTreeSet;

/// A rule that is broken.
pub struct Broken {
    pub reason: String,
    pub detail: String,
}

type Check = fn(&Value, &Value) -> Option<Broken>;

/// In upstream's order: by name, those of baseline first. A check of `Restricted` may replace one of baseline.
const CHECKS: [(Level, bool, Check); 18] = [
    // Level, whether a stricter check of the same thing takes its place, check.
    (Level::Baseline, false, app_armor),
    (Level::Baseline, true, default_capabilities),
    (Level::Baseline, false, host_namespaces),
    (Level::Baseline, true, host_paths),
    (Level::Baseline, false, host_ports),
    (Level::Baseline, false, probe_hosts),
    (Level::Baseline, false, privileged),
    (Level::Baseline, false, proc_mount),
    (Level::Baseline, false, se_linux),
    (Level::Baseline, true, seccomp),
    (Level::Baseline, false, sysctls),
    (Level::Baseline, false, host_process),
    (Level::Restricted, false, privilege_escalation),
    (Level::Restricted, false, all_capabilities),
    (Level::Restricted, false, volume_types),
    (Level::Restricted, false, non_root),
    (Level::Restricted, false, root_user),
    (Level::Restricted, false, seccomp_set),
];

pub fn broken(level: Level, metadata: &Value, spec: &Value) -> Vec<Broken> {
    CHECKS
        .iter()
        .filter(|(of, replaced, _)| *of <= level && !(*replaced && level == Level::Restricted))
        .filter_map(|(_, _, check)| check(metadata, spec))
        .collect()
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| items(spec, list))
}

fn names(spec: &Value, bad: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec).filter(|c| bad(c)).map(|c| text(c, "name")).collect()
}

fn quoted<S: AsRef<str>>(all: impl IntoIterator<Item = S>) -> String {
    let all: Vec<String> = all.into_iter().map(|s| Value::from(s.as_ref()).to_string()).collect();
    all.join(", ")
}

fn plural(word: &str, count: usize) -> String {
    if count == 1 { word.into() } else { format!("{word}s") }
}

fn listed(word: &str, all: &[&str]) -> String {
    format!("{} {}", plural(word, all.len()), quoted(all))
}

fn found(reason: impl Into<String>, detail: String) -> Option<Broken> {
    Some(Broken { reason: reason.into(), detail })
}

/// The pod, and the containers, whose value is bad: what the message calls them, and the values.
fn setters(spec: &Value, path: &str, bad: impl Fn(&Value) -> bool) -> (Vec<String>, BTreeSet<String>) {
    let path = format!("securityContext.{path}");
    let (mut who, mut values) = (vec![], BTreeSet::new());
    let value = at(spec, &path);
    if bad(value) {
        who.push("pod".to_string());
        values.extend(value.as_str().map(str::to_string));
    }
    let these = names(spec, |c| bad(at(c, &path)));
    if !these.is_empty() {
        who.push(listed("container", &these));
    }
    values.extend(
        containers(spec)
            .map(|c| at(c, &path))
            .filter(|v| bad(v))
            .filter_map(|v| v.as_str())
            .map(String::from),
    );
    (who, values)
}

fn is_windows(spec: &Value) -> bool {
    text(spec, "os.name") == "windows"
}

fn bad_profile(value: &Value) -> bool {
    value.as_str().is_some_and(|v| !matches!(v, "" | "RuntimeDefault" | "Localhost"))
}

fn app_armor(metadata: &Value, spec: &Value) -> Option<Broken> {
    let (mut who, values) = setters(spec, "appArmorProfile.type", bad_profile);
    let mut values: Vec<String> = values.into_iter().collect();
    let annotations = metadata.get("annotations").and_then(Value::as_object).into_iter().flatten();
    let mut bad: Vec<String> = annotations
        .filter(|(k, _)| k.starts_with("container.apparmor.security.beta.kubernetes.io/"))
        .map(|(k, v)| (k, v.as_str().unwrap_or("")))
        .filter(|(_, v)| !v.is_empty() && *v != "runtime/default" && !v.starts_with("localhost/"))
        .map(|(k, v)| format!("{k}={}", Value::from(v)))
        .collect();
    if !bad.is_empty() {
        bad.sort();
        who.push(plural("annotation", bad.len()));
        values.extend(bad);
    }
    if who.is_empty() {
        return None;
    }
    let detail = format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&values));
    found(plural("forbidden AppArmor profile", values.len()), detail)
}

fn added(container: &Value, allowed: &[&str]) -> Vec<String> {
    let add = items(container, "securityContext.capabilities.add").iter().filter_map(Value::as_str);
    add.filter(|c| !allowed.contains(c)).map(str::to_string).collect()
}

/// The containers that add capabilities beyond those allowed.
fn adding(spec: &Value, allowed: &[&str]) -> Option<String> {
    let these = names(spec, |c| !added(c, allowed).is_empty());
    let all: BTreeSet<String> = containers(spec).flat_map(|c| added(c, allowed)).collect();
    let who = listed("container", &these);
    (!these.is_empty())
        .then(|| format!("{who} must not include {} in securityContext.capabilities.add", quoted(all)))
}

fn default_capabilities(_: &Value, spec: &Value) -> Option<Broken> {
    let allowed = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    found("non-default capabilities", adding(spec, &allowed)?)
}

fn host_namespaces(_: &Value, spec: &Value) -> Option<Broken> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|f| flag(spec, f))
        .map(|f| format!("{f}=true"))
        .collect();
    if used.is_empty() { None } else { found("host namespaces", used.join(", ")) }
}

fn host_paths(_: &Value, spec: &Value) -> Option<Broken> {
    let volumes = items(spec, "volumes").iter().filter(|v| !at(v, "hostPath").is_null());
    let these: Vec<&str> = volumes.map(|v| text(v, "name")).collect();
    if these.is_empty() { None } else { found("hostPath volumes", listed("volume", &these)) }
}

fn host_ports(_: &Value, spec: &Value) -> Option<Broken> {
    let ports = |c: &Value| -> Vec<String> {
        items(c, "ports")
            .iter()
            .map(|p| int(p, "hostPort"))
            .filter(|p| *p != 0)
            .map(|p| p.to_string())
            .collect()
    };
    let these = names(spec, |c| !ports(c).is_empty());
    let all: BTreeSet<String> = containers(spec).flat_map(ports).collect();
    uses(&these, "hostPort", all.len(), all.into_iter().collect::<Vec<_>>().join(", "))
}

/// "containers a, b use things x, y", with the things as the reason.
fn uses(these: &[&str], thing: &str, count: usize, all: String) -> Option<Broken> {
    if these.is_empty() {
        return None;
    }
    let verb = if these.len() == 1 { "uses" } else { "use" };
    let things = plural(thing, count);
    found(things.clone(), format!("{} {verb} {things} {all}", listed("container", these)))
}

fn probe_hosts(_: &Value, spec: &Value) -> Option<Broken> {
    let hosts = |c: &Value| -> Vec<String> {
        let places =
            ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
        let handlers =
            places.iter().flat_map(|p| ["httpGet", "tcpSocket"].map(|h| text(c, &format!("{p}.{h}.host"))));
        handlers.filter(|h| !h.is_empty()).map(str::to_string).collect()
    };
    let these = names(spec, |c| !hosts(c).is_empty());
    let all: BTreeSet<String> = containers(spec).flat_map(hosts).collect();
    uses(&these, "probe or lifecycle host", all.len(), quoted(all))
}

fn privileged(_: &Value, spec: &Value) -> Option<Broken> {
    let these = names(spec, |c| flag(c, "securityContext.privileged"));
    let who = listed("container", &these);
    if these.is_empty() {
        None
    } else {
        found("privileged", format!("{who} must not set securityContext.privileged=true"))
    }
}

fn proc_mount(_: &Value, spec: &Value) -> Option<Broken> {
    let bad = |v: &Value| v.as_str().is_some_and(|v| !matches!(v, "" | "Default"));
    let (_, values) = setters(spec, "procMount", bad);
    let these = names(spec, |c| bad(at(c, "securityContext.procMount")));
    if these.is_empty() {
        return None;
    }
    let who = listed("container", &these);
    found("procMount", format!("{who} must not set securityContext.procMount to {}", quoted(values)))
}

fn se_linux(_: &Value, spec: &Value) -> Option<Broken> {
    let allowed = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let bad_type = |o: &Value| !allowed.contains(&text(o, "type"));
    let bad = |o: &Value| bad_type(o) || !text(o, "user").is_empty() || !text(o, "role").is_empty();
    let (who, _) = setters(spec, "seLinuxOptions", bad);
    if who.is_empty() {
        return None;
    }
    let mut all = vec![at(spec, "securityContext.seLinuxOptions")];
    all.extend(containers(spec).map(|c| at(c, "securityContext.seLinuxOptions")));
    let types: BTreeSet<&str> = all.iter().filter(|o| bad_type(o)).map(|o| text(o, "type")).collect();
    let mut data = vec![];
    if !types.is_empty() {
        data.push(listed("type", &types.into_iter().collect::<Vec<_>>()));
    }
    for part in ["user", "role"] {
        if all.iter().any(|o| !text(o, part).is_empty()) {
            data.push(format!("{part} may not be set"));
        }
    }
    let detail =
        format!("{} set forbidden securityContext.seLinuxOptions: {}", who.join(" and "), data.join("; "));
    found("seLinuxOptions", detail)
}

fn seccomp(_: &Value, spec: &Value) -> Option<Broken> {
    let (who, values) = setters(spec, "seccompProfile.type", bad_profile);
    if who.is_empty() {
        return None;
    }
    let who = who.join(" and ");
    found(
        "seccompProfile",
        format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values)),
    )
}

fn sysctls(_: &Value, spec: &Value) -> Option<Broken> {
    let allowed = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    ];
    let set = items(spec, "securityContext.sysctls").iter().map(|s| text(s, "name"));
    let bad: Vec<&str> = set.filter(|s| !allowed.contains(s)).collect();
    if bad.is_empty() { None } else { found("forbidden sysctls", bad.join(", ")) }
}

fn host_process(_: &Value, spec: &Value) -> Option<Broken> {
    let (who, _) = setters(spec, "windowsOptions.hostProcess", |v| v == &Value::Bool(true));
    if who.is_empty() {
        return None;
    }
    found(
        "hostProcess",
        format!("{} must not set securityContext.windowsOptions.hostProcess=true", who.join(" and ")),
    )
}

fn privilege_escalation(_: &Value, spec: &Value) -> Option<Broken> {
    let these = names(spec, |c| at(c, "securityContext.allowPrivilegeEscalation") != &Value::Bool(false));
    if these.is_empty() || is_windows(spec) {
        return None;
    }
    let who = listed("container", &these);
    let detail = format!("{who} must set securityContext.allowPrivilegeEscalation=false");
    found("allowPrivilegeEscalation != false", detail)
}

fn all_capabilities(_: &Value, spec: &Value) -> Option<Broken> {
    if is_windows(spec) {
        return None;
    }
    let these = names(spec, |c| !items(c, "securityContext.capabilities.drop").iter().any(|d| d == "ALL"));
    let mut details = vec![];
    if !these.is_empty() {
        let who = listed("container", &these);
        details.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    details.extend(adding(spec, &["NET_BIND_SERVICE"]));
    if details.is_empty() { None } else { found("unrestricted capabilities", details.join("; ")) }
}

fn volume_types(_: &Value, spec: &Value) -> Option<Broken> {
    let allowed = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let kind = |volume: &Value| {
        let mut keys = volume.as_object().into_iter().flatten().filter(|(k, v)| *k != "name" && !v.is_null());
        keys.next().map_or("unknown", |(k, _)| k.as_str()).to_string()
    };
    let bad: Vec<&Value> =
        items(spec, "volumes").iter().filter(|v| !allowed.contains(&kind(v).as_str())).collect();
    if bad.is_empty() {
        return None;
    }
    let types: BTreeSet<String> = bad.iter().map(|v| kind(v)).collect();
    let these: Vec<&str> = bad.iter().map(|v| text(v, "name")).collect();
    let verb = if these.len() == 1 { "uses" } else { "use" };
    let what = plural("restricted volume type", types.len());
    found("restricted volume types", format!("{} {verb} {what} {}", listed("volume", &these), quoted(types)))
}

fn non_root(_: &Value, spec: &Value) -> Option<Broken> {
    let reason = "runAsNonRoot != true";
    let path = "securityContext.runAsNonRoot";
    let (who, _) = setters(spec, "runAsNonRoot", |v| v == &Value::Bool(false));
    if !who.is_empty() {
        return found(
            reason,
            format!("{} must not set securityContext.runAsNonRoot=false", who.join(" and ")),
        );
    }
    let these = names(spec, |c| at(c, path).is_null());
    if these.is_empty() || flag(spec, path) {
        return None;
    }
    found(
        reason,
        format!("pod or {} must set securityContext.runAsNonRoot=true", listed("container", &these)),
    )
}

fn root_user(_: &Value, spec: &Value) -> Option<Broken> {
    let (who, _) = setters(spec, "runAsUser", |v| v.as_i64() == Some(0));
    if who.is_empty() {
        None
    } else {
        found("runAsUser=0", format!("{} must not set runAsUser=0", who.join(" and ")))
    }
}

fn seccomp_set(metadata: &Value, spec: &Value) -> Option<Broken> {
    if is_windows(spec) {
        return None;
    }
    if let Some(broken) = seccomp(metadata, spec) {
        return Some(broken);
    }
    let path = "securityContext.seccompProfile.type";
    let these = names(spec, |c| text(c, path).is_empty());
    if these.is_empty() || !text(spec, path).is_empty() {
        return None;
    }
    let who = listed("container", &these);
    let detail = format!(
        "pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
    );
    found("seccompProfile", detail)
}
