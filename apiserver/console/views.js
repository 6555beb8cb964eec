// What is shown: each view turns collections into columns and rows; nothing here talks to the network.

const age = (time) => {
  const seconds = Math.max(0, Math.floor((Date.now() - Date.parse(time)) / 1000));
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86400)}d`;
};

const condition = (object, type) => object.status?.conditions?.find((entry) => entry.type === type)?.status;

/** The word kubectl shows for a pod. */
export function podState(pod) {
  if (pod.metadata.deletionTimestamp) return "Terminating";
  for (const status of pod.status?.containerStatuses ?? []) {
    const reason = status.state?.waiting?.reason ?? status.state?.terminated?.reason;
    if (reason && reason !== "Completed") return reason;
  }
  return pod.status?.phase ?? "Unknown";
}

const tone = (word) =>
  ["Ready", "Running", "Available", "Succeeded", "yes", "Normal"].includes(word) ? "good"
    : ["Pending", "Terminating", "ContainerCreating", "Progressing", "Unknown"].includes(word) ? "wait" : "bad";

const marked = (word) => ({ text: word, class: tone(word) });
const sum = (list, value) => (list ?? []).reduce((total, entry) => total + (value(entry) ?? 0), 0);

/** name -> { title, columns, rows(collections) }; a cell is a string or { text, class, action }. */
export const VIEWS = {
  nodes: {
    columns: ["Name", "State", "Address", "Pod CIDR", "Runtime", "CPU", "Memory", "Pods", "Age"],
    rows: ({ nodes, pods }) => nodes.map((node) => [
      node.metadata.name,
      marked(condition(node, "Ready") === "True" ? "Ready" : condition(node, "Ready") === "Unknown" ? "Unknown" : "NotReady"),
      node.status?.addresses?.find((entry) => entry.type === "InternalIP")?.address ?? "",
      node.spec?.podCIDR ?? "",
      node.status?.nodeInfo?.containerRuntimeVersion ?? "",
      node.status?.allocatable?.cpu ?? "",
      node.status?.allocatable?.memory ?? "",
      String(pods.filter((pod) => pod.spec?.nodeName === node.metadata.name).length),
      age(node.metadata.creationTimestamp),
    ]),
  },
  workloads: {
    columns: ["Namespace", "Deployment", "State", "Ready", "Up to date", "Images", "Age"],
    rows: ({ deployments }) => deployments.map((item) => {
      const wanted = item.spec.replicas ?? 1;
      const available = item.status?.availableReplicas ?? 0;
      return [
        item.metadata.namespace, item.metadata.name,
        marked(available >= wanted ? "Available" : "Progressing"),
        `${item.status?.readyReplicas ?? 0}/${wanted}`, String(item.status?.updatedReplicas ?? 0),
        item.spec.template.spec.containers.map((container) => container.image).join(", "),
        age(item.metadata.creationTimestamp),
      ];
    }),
  },
  pods: {
    columns: ["Namespace", "Pod", "State", "Ready", "Restarts", "Node", "Address", "Age", ""],
    rows: ({ pods }) => pods.map((pod) => [
      pod.metadata.namespace, pod.metadata.name, marked(podState(pod)),
      `${(pod.status?.containerStatuses ?? []).filter((status) => status.ready).length}/${pod.spec.containers.length}`,
      String(sum(pod.status?.containerStatuses, (status) => status.restartCount)),
      pod.spec.nodeName ?? "", pod.status?.podIP ?? "", age(pod.metadata.creationTimestamp),
      { text: "log", action: { log: pod } },
    ]),
  },
  services: {
    columns: ["Namespace", "Service", "Type", "Cluster address", "External", "Ports", "Age"],
    rows: ({ services }) => services.map((item) => [
      item.metadata.namespace, item.metadata.name, item.spec.type, item.spec.clusterIP ?? "",
      (item.status?.loadBalancer?.ingress ?? []).map((entry) => entry.ip ?? entry.hostname).join(", "),
      (item.spec.ports ?? []).map((port) => `${port.port}${port.nodePort ? `:${port.nodePort}` : ""}/${port.protocol}`).join(", "),
      age(item.metadata.creationTimestamp),
    ]),
  },
  events: {
    columns: ["Last", "Type", "Reason", "Object", "Message", "Count"],
    rows: ({ events }) => events
      .map((event) => ({ event, time: event.lastTimestamp ?? event.eventTime ?? event.metadata.creationTimestamp }))
      .sort((a, b) => Date.parse(b.time) - Date.parse(a.time))
      .slice(0, 300)
      .map(({ event, time }) => [
        age(time), marked(event.type ?? ""), event.reason ?? "",
        `${event.involvedObject?.kind}/${event.involvedObject?.name}`, event.message ?? "", String(event.count ?? 1),
      ]),
  },
  store: {
    columns: ["Member", "Id", "Role", "Peer addresses", "Client addresses"],
    rows: ({ store }) => (store.members ?? []).map((member) => [
      member.name, member.id, marked(member.isLeader ? "Ready" : member.isLearner ? "Progressing" : "Running"),
      (member.peerURLs ?? []).join(", "), (member.clientURLs ?? []).join(", "),
    ]),
    words: { Ready: "leader", Running: "follower", Progressing: "learner" },
  },
};

/** The figures on top. */
export function cards({ nodes, pods, deployments, events, store }) {
  const ready = nodes.filter((node) => condition(node, "Ready") === "True").length;
  const running = pods.filter((pod) => podState(pod) === "Running").length;
  const available = deployments.filter((item) => (item.status?.availableReplicas ?? 0) >= (item.spec.replicas ?? 1)).length;
  const leader = (store.members ?? []).find((member) => member.isLeader)?.name ?? "none";
  return [
    ["nodes ready", `${ready}/${nodes.length}`], ["pods running", `${running}/${pods.length}`],
    ["deployments available", `${available}/${deployments.length}`],
    ["warnings", String(events.filter((event) => event.type === "Warning").length)],
    ["store leader", leader], ["revision", String(store.revision ?? "")],
  ];
}
