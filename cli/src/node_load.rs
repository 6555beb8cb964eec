//! What `describe node` adds to the outline: the pods that run on the node, and how much of it they ask for.

use keelson_api::quantity::Quantity;
use serde_json::Value;

use crate::describe::age;
use crate::output::aligned;

/// Resources of the summary that are shown even when nobody asks for them.
const ALWAYS: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// The node's pods that have not ended, with what they request, and the sums beside what the node can allocate.
pub fn load(node: &Value, pods: &[Value]) -> String {
    let running: Vec<&Value> = pods
        .iter()
        .filter(|pod| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
        .collect();
    let mut rows = header(&[
        "  Namespace",
        "Name",
        "CPU Requests",
        "CPU Limits",
        "Memory Requests",
        "Memory Limits",
        "Age",
    ]);
    for pod in &running {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
        let mut row = vec![format!("  {}", text("namespace")), text("name").to_owned()];
        for resource in ["cpu", "memory"] {
            for side in ["requests", "limits"] {
                row.push(share(node, resource, &of_pod(pod, side, resource)));
            }
        }
        row.push(age(text("creationTimestamp")));
        rows.push(row);
    }
    let mut sums = header(&["  Resource", "Requests", "Limits"]);
    for resource in resources(node) {
        let total = |side: &str| {
            let amounts = running.iter().map(|pod| of_pod(pod, side, &resource));
            amounts.fold(Quantity::from_int(0), |sum, amount| sum.plus(&amount))
        };
        let (requests, limits) = (total("requests"), total("limits"));
        sums.push(vec![
            format!("  {resource}"),
            share(node, &resource, &requests),
            share(node, &resource, &limits),
        ]);
    }
    format!(
        "Non-terminated Pods:  ({} in total)\n{}Allocated resources:\n  (Total limits may be over 100 percent, i.e., \
         overcommitted.)\n{}",
        running.len(),
        aligned(&rows),
        aligned(&sums)
    )
}

fn header(names: &[&str]) -> Vec<Vec<String>> {
    let rule = |name: &&str| {
        let word = name.trim_start();
        format!("{}{}", &name[..name.len() - word.len()], "-".repeat(word.len()))
    };
    vec![names.iter().map(|name| (*name).to_owned()).collect(), names.iter().map(rule).collect()]
}

/// The standing three, then whatever else the node offers but pods' count.
fn resources(node: &Value) -> Vec<String> {
    let offered = node["status"]["allocatable"].as_object().into_iter().flatten().map(|(name, _)| name);
    let more = offered.filter(|name| !ALWAYS.contains(&name.as_str()) && *name != "pods");
    ALWAYS.iter().map(|name| (*name).to_owned()).chain(more.cloned()).collect()
}

/// What a pod asks of a resource: its containers together or its largest init container, plus its overhead.
fn of_pod(pod: &Value, side: &str, resource: &str) -> Quantity {
    let amount = |value: &Value| Quantity::from_value(value).unwrap_or_else(|_| Quantity::from_int(0));
    let each = |list: &str| {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.map(|container| amount(&container["resources"][side][resource])).collect::<Vec<_>>()
    };
    let together = each("containers").iter().fold(Quantity::from_int(0), |sum, each| sum.plus(each));
    let largest = each("initContainers").into_iter().chain([together]).max();
    let most = largest.unwrap_or_else(|| Quantity::from_int(0));
    let overhead = &pod["spec"]["overhead"][resource];
    if overhead.is_null() || (side == "limits" && most.is_zero()) {
        most
    } else {
        most.plus(&amount(overhead))
    }
}

/// `100m (5%)`, of what the node can allocate.
fn share(node: &Value, resource: &str, amount: &Quantity) -> String {
    let whole = Quantity::from_value(&node["status"]["allocatable"][resource]);
    let whole = whole.map_or(0, |whole| whole.milli());
    let percent = if whole > 0 { i128::from(amount.milli()) * 100 / i128::from(whole) } else { 0 };
    format!("{amount} ({percent}%)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_s_load_counts_what_runs() {
        let node =
            json!({"status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110", "x/gpu": "4"}}});
        let container = |cpu: &str, memory: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}});
        let pod = |name: &str, phase: &str, spec: Value| {
            json!({
                "metadata": {"namespace": "default", "name": name, "creationTimestamp": "soon"},
                "spec": spec, "status": {"phase": phase},
            })
        };
        let pods = [
            pod(
                "web",
                "Running",
                json!({"containers": [container("100m", "1Gi"), container("150m", "1Gi")]}),
            ),
            pod("late", "Pending", json!({"initContainers": [container("1", "1Mi")], "containers": [{}]})),
            pod("ended", "Succeeded", json!({"containers": [container("2", "4Gi")]})),
        ];
        let shown = load(&node, &pods);
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(shown.lines().next(), Some("Non-terminated Pods:  (2 in total)"));
        let web =
            ["default", "web", "250m", "(12%)", "0", "(0%)", "2Gi", "(50%)", "2Gi", "(50%)", "<unknown>"];
        assert_eq!(lines[3], web);
        assert!(lines.contains(&vec!["cpu", "1250m", "(62%)", "0", "(0%)"]), "{shown}");
        assert!(lines.contains(&vec!["x/gpu", "0", "(0%)", "0", "(0%)"]), "{shown}");
        assert!(!shown.contains("ended"), "ended pods hold nothing: {shown}");
    }
}
