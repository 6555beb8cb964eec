// The checks of JavaScript's client: each prints "ok NAME", an error ends the program.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import * as k8s from "@kubernetes/client-node";

const namespace = "javascript";
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);

async function until(what, holds) {
  for (const end = Date.now() + 60_000; Date.now() < end; await sleep(50)) {
    if (await holds()) return;
  }
  throw new Error(`not in time: ${what}`);
}

async function refused(code, promise) {
  const error = await promise.then(
    () => assert.fail(`${code} expected`),
    (error) => error,
  );
  assert.equal(error.code, code, String(error));
  return JSON.parse(error.body);
}

const configMap = (name, labels = {}) => ({ metadata: { name, labels }, data: { key: "value" } });

const checks = {
  async "objects and typed errors"() {
    const made = await core.createNamespacedConfigMap({ namespace, body: configMap("object") });
    assert.ok(made.metadata.creationTimestamp instanceof Date);
    const stale = structuredClone(await core.readNamespacedConfigMap({ name: "object", namespace }));
    made.data.key = "replaced";
    await core.replaceNamespacedConfigMap({ name: "object", namespace, body: made });
    const conflict = await refused(409, core.replaceNamespacedConfigMap({ name: "object", namespace, body: stale }));
    assert.equal(conflict.reason, "Conflict");
    await core.deleteNamespacedConfigMap({ name: "object", namespace });
    const missing = await refused(404, core.readNamespacedConfigMap({ name: "object", namespace }));
    assert.equal(missing.message, 'configmaps "object" not found');
    const bad = await refused(422, core.createNamespacedConfigMap({ namespace, body: configMap("Bad Name") }));
    assert.equal(bad.details.causes[0].field, "metadata.name");
  },

  async "patches and server-side apply"() {
    await core.createNamespacedConfigMap({ namespace, body: configMap("patched") });
    const patch = (body, form, more = {}) =>
      core.patchNamespacedConfigMap(
        { name: "patched", namespace, body, ...more },
        k8s.setHeaderOptions("Content-Type", form),
      );
    await patch([{ op: "add", path: "/data/json", value: "1" }], k8s.PatchStrategy.JsonPatch);
    await patch({ data: { merge: "2", key: null } }, k8s.PatchStrategy.MergePatch);
    await patch({ data: { strategic: "3" } }, k8s.PatchStrategy.StrategicMergePatch);
    const body = { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "patched" }, data: { applied: "4" } };
    const got = await patch(body, k8s.PatchStrategy.ServerSideApply, { fieldManager: "javascript" });
    assert.deepEqual(got.data, { applied: "4", json: "1", merge: "2", strategic: "3" });
  },

  async "pages and selectors"() {
    for (let i = 0; i < 5; i++) await core.createNamespacedConfigMap({ namespace, body: configMap(`page-${i}`, { set: "pages" }) });
    const names = [];
    let _continue;
    do {
      const page = await core.listNamespacedConfigMap({ namespace, labelSelector: "set=pages", limit: 2, _continue });
      names.push(...page.items.map((item) => item.metadata.name));
      _continue = page.metadata._continue;
    } while (_continue);
    assert.deepEqual(names, ["page-0", "page-1", "page-2", "page-3", "page-4"]);
  },

  async "informer"() {
    const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: "set=informed" });
    const path = `/api/v1/namespaces/${namespace}/configmaps`;
    const informer = k8s.makeInformer(config, path, list, "set=informed");
    const seen = [];
    for (const verb of ["add", "update", "delete"]) informer.on(verb, (object) => seen.push(`${verb} ${object.metadata.name}`));
    informer.on("error", (error) => seen.push(`error ${error}`));
    await informer.start();
    const labels = { set: "informed" };
    const made = await core.createNamespacedConfigMap({ namespace, body: configMap("informed", labels) });
    await until("added", () => seen.includes("add informed"));
    assert.equal(informer.get("informed", namespace).metadata.uid, made.metadata.uid);
    await core.replaceNamespacedConfigMap({ name: "informed", namespace, body: configMap("informed", { ...labels, more: "1" }) });
    await core.deleteNamespacedConfigMap({ name: "informed", namespace });
    await until("deleted", () => seen.includes("delete informed"));
    await informer.stop();
    // The client tells of its own stop as an error.
    assert.deepEqual(seen.slice(0, 3), ["add informed", "update informed", "delete informed"]);
  },

  async "workloads, scale, refused exec and logs"() {
    const labels = { app: "web" };
    const containers = [{ name: "main", image: "registry.example/main:1" }];
    const template = { metadata: { labels }, spec: { containers, terminationGracePeriodSeconds: 1 } };
    await apps.createNamespacedDeployment({
      namespace,
      body: { metadata: { name: "web" }, spec: { replicas: 2, selector: { matchLabels: labels }, template } },
    });
    const ready = async (count) => (await apps.readNamespacedDeployment({ name: "web", namespace })).status.readyReplicas === count;
    await until("two ready", () => ready(2));
    const scale = await apps.readNamespacedDeploymentScale({ name: "web", namespace });
    scale.spec.replicas = 3;
    await apps.replaceNamespacedDeploymentScale({ name: "web", namespace, body: scale });
    await until("three ready", () => ready(3));
    const [pod] = (await core.listNamespacedPod({ namespace, labelSelector: "app=web" })).items;
    const status = await refused(501, core.readNamespacedPodLog({ name: pod.metadata.name, namespace }));
    assert.match(status.message, /simulated/);
    await assert.rejects(new k8s.Exec(config).exec(namespace, pod.metadata.name, "main", ["true"], null, null, null, false));
    await apps.deleteNamespacedDeployment({ name: "web", namespace, propagationPolicy: "Foreground" });
    await until("gone", async () => (await core.listNamespacedPod({ namespace, labelSelector: "app=web" })).items.length === 0);
  },

  async "objects of any kind"() {
    const client = k8s.KubernetesObjectApi.makeApiClient(config);
    const spec = { apiVersion: "networking.k8s.io/v1", kind: "Ingress", metadata: { name: "any", namespace } };
    const made = await client.create({ ...spec, spec: { defaultBackend: { service: { name: "web", port: { number: 80 } } } } });
    assert.equal(made.kind, "Ingress");
    await client.patch({ ...spec, metadata: { ...spec.metadata, labels: { a: "b" } } });
    assert.equal((await client.read(spec)).metadata.labels.a, "b");
    assert.equal((await client.list("networking.k8s.io/v1", "Ingress", namespace)).items.length, 1);
    await client.delete(spec);
  },

  async "access"() {
    const api = config.makeApiClient(k8s.AuthorizationV1Api);
    const attributes = { namespace, verb: "list", resource: "pods" };
    const review = await api.createSubjectAccessReview({ body: { spec: { user: "alice", resourceAttributes: attributes } } });
    assert.equal(review.status.allowed, false);
    const version = await config.makeApiClient(k8s.VersionApi).getCode();
    assert.equal(version.minor, "36");
  },
};

await core.createNamespace({ body: { metadata: { name: namespace } } });
await until("service account", () => core.readNamespacedServiceAccount({ name: "default", namespace }).then(() => true, () => false));
for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log("ok", name);
}
await core.deleteNamespace({ name: namespace });
