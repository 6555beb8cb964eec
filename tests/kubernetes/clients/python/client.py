"""The checks of Python's client: each prints "ok NAME", an exception ends the program."""

import threading
import time

import yaml
from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError
from kubernetes.stream import stream

NAMESPACE = "python"


def until(what, holds, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = holds()
        if value:
            return value
        time.sleep(0.05)
    raise TimeoutError(what)


def refused(code, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except ApiException as error:
        assert error.status == code, error
        return error
    raise AssertionError(f"{code} expected")


def missing(call, *arguments):
    try:
        call(*arguments)
    except ApiException as error:
        assert error.status == 404, error
        return True
    return False


def config_map(name, **labels):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels=labels), data={"key": "value"})


def objects(core):
    made = core.create_namespaced_config_map(NAMESPACE, config_map("object"))
    assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo
    stale = core.read_namespaced_config_map("object", NAMESPACE)
    made.data["key"] = "replaced"
    core.replace_namespaced_config_map("object", NAMESPACE, made)
    error = refused(409, core.replace_namespaced_config_map, "object", NAMESPACE, stale)
    assert '"reason":"Conflict"' in error.body, error.body
    refused(409, core.create_namespaced_config_map, NAMESPACE, config_map("object"))
    status = core.delete_namespaced_config_map("object", NAMESPACE)
    assert status.status == "Success"
    error = refused(404, core.read_namespaced_config_map, "object", NAMESPACE)
    assert 'configmaps \\"object\\" not found' in error.body, error.body


def patches(core):
    core.create_namespaced_config_map(NAMESPACE, config_map("patched"))
    core.patch_namespaced_config_map("patched", NAMESPACE, {"data": {"strategic": "1"}})
    core.patch_namespaced_config_map("patched", NAMESPACE, [{"op": "add", "path": "/data/json", "value": "2"}])
    core.patch_namespaced_config_map("patched", NAMESPACE, {"data": {"key": None}}, _content_type="application/merge-patch+json")
    applied = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "patched"}, "data": {"applied": "3"}}
    got = core.patch_namespaced_config_map(
        "patched", NAMESPACE, applied, _content_type="application/apply-patch+yaml", field_manager="python"
    )
    assert got.data == {"strategic": "1", "json": "2", "applied": "3"}, got.data


def pages(core):
    for number in range(7):
        core.create_namespaced_config_map(NAMESPACE, config_map(f"page-{number}", set="pages"))
    names, more = [], None
    while True:
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="set=pages", limit=3, _continue=more)
        assert len(page.items) <= 3
        names += [item.metadata.name for item in page.items]
        more = page.metadata._continue
        if not more:
            break
    assert names == [f"page-{number}" for number in range(7)], names


def watches(core):
    start = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version

    def change():
        core.create_namespaced_config_map(NAMESPACE, config_map("watched", set="watched"))
        core.patch_namespaced_config_map("watched", NAMESPACE, {"data": {"key": "changed"}})
        core.delete_namespaced_config_map("watched", NAMESPACE)

    thread = threading.Thread(target=change)
    thread.start()
    seen, stream_ = [], watch.Watch()
    for event in stream_.stream(
        core.list_namespaced_config_map, NAMESPACE, label_selector="set=watched", resource_version=start, timeout_seconds=30
    ):
        seen.append(event["type"])
        if event["type"] == "DELETED":
            assert event["object"].data == {"key": "changed"}
            stream_.stop()
    thread.join()
    assert seen == ["ADDED", "MODIFIED", "DELETED"], seen
    before = time.monotonic()
    assert list(watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, label_selector="set=none", timeout_seconds=1)) == []
    assert time.monotonic() - before < 20


def workloads(core, apps):
    with open(__file__.replace("client.py", "deployment.yaml")) as file:
        utils.create_from_dict(client.ApiClient(), yaml.safe_load(file), namespace=NAMESPACE)
    until("ready", lambda: apps.read_namespaced_deployment_status("web", NAMESPACE).status.ready_replicas == 2)
    scale = apps.read_namespaced_deployment_scale("web", NAMESPACE)
    scale.spec.replicas = 1
    apps.replace_namespaced_deployment_scale("web", NAMESPACE, scale)
    until("scaled", lambda: len(core.list_namespaced_pod(NAMESPACE, label_selector="app=web").items) == 1)
    pod = core.list_namespaced_pod(NAMESPACE, label_selector="app=web", field_selector="status.phase=Running").items[0]
    try:
        stream(core.connect_get_namespaced_pod_exec, pod.metadata.name, NAMESPACE, command=["true"], stdout=True, stderr=True)
        raise AssertionError("exec in a simulated pod")
    except (ApiException, AttributeError) as error:
        # The client stumbles over a refused handshake that it has no body of; what was refused is the cause.
        refusal = error if isinstance(error, ApiException) else error.__context__
        assert "simulated" in str(refusal) or "501" in str(refusal), refusal
    error = refused(501, core.read_namespaced_pod_log, pod.metadata.name, NAMESPACE)
    assert "simulated" in error.body, error.body
    core.create_namespaced_pod_eviction(
        pod.metadata.name, NAMESPACE, client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.metadata.name))
    )
    apps.delete_namespaced_deployment("web", NAMESPACE, propagation_policy="Foreground")
    until("gone", lambda: not core.list_namespaced_pod(NAMESPACE, label_selector="app=web").items)


def custom(extensions, objects):
    schema = {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}, "hue": {"type": "string", "default": "red"}}},
            "status": {"type": "object", "properties": {"ripe": {"type": "boolean"}}},
        },
    }
    names = {"kind": "Berry", "plural": "berries", "singular": "berry"}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}
    extensions.create_custom_resource_definition(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "berries.python.example.com"},
            "spec": {"group": "python.example.com", "scope": "Namespaced", "names": names, "versions": [version]},
        }
    )
    place = ("python.example.com", "v1", NAMESPACE, "berries")
    berry = {"apiVersion": "python.example.com/v1", "kind": "Berry", "metadata": {"name": "one"}, "spec": {"size": 2}}

    def established():
        read = extensions.read_custom_resource_definition("berries.python.example.com")
        return any(c.type == "Established" and c.status == "True" for c in read.status.conditions or [])

    until("established", established)
    made = objects.create_namespaced_custom_object(*place, berry)
    assert made["spec"] == {"size": 2, "hue": "red"}, made
    error = refused(422, objects.create_namespaced_custom_object, *place, berry | {"metadata": {"name": "two"}, "spec": {"size": 0}})
    assert "spec.size" in error.body, error.body
    objects.patch_namespaced_custom_object_status(*place, "one", {"status": {"ripe": True}})
    objects.patch_namespaced_custom_object(*place, "one", {"spec": {"hue": "blue"}})
    got = objects.get_namespaced_custom_object(*place, "one")
    assert (got["spec"]["hue"], got["status"]["ripe"], got["metadata"]["generation"]) == ("blue", True, 2), got


def dynamically():
    found = dynamic.DynamicClient(client.ApiClient())
    berries = found.resources.get(api_version="python.example.com/v1", kind="Berry")
    assert berries.get(namespace=NAMESPACE).items[0].spec.size == 2
    maps = found.resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dynamic"}, "data": {"a": "1"}}
    maps.server_side_apply(body=body, namespace=NAMESPACE, field_manager="first")
    try:
        maps.server_side_apply(body=body | {"data": {"a": "2"}}, namespace=NAMESPACE, field_manager="second")
        raise AssertionError("a conflict is expected")
    except ConflictError as error:
        assert "first" in str(error), error
    maps.delete(name="dynamic", namespace=NAMESPACE)
    try:
        maps.get(name="dynamic", namespace=NAMESPACE)
        raise AssertionError("it is deleted")
    except NotFoundError:
        pass
    deployments = found.resources.get(api_version="apps/v1", kind="Deployment")
    assert "scale" in deployments.subresources


def access(core):
    token = core.create_namespaced_service_account_token(
        "default", NAMESPACE, client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    )
    own = client.Configuration.get_default_copy()
    own.cert_file, own.key_file = None, None
    own.api_key = {"authorization": "Bearer " + token.status.token}
    review = client.AuthenticationV1Api(client.ApiClient(own)).create_self_subject_review(client.V1SelfSubjectReview())
    assert review.status.user_info.username == f"system:serviceaccount:{NAMESPACE}:default"
    error = refused(403, client.CoreV1Api(client.ApiClient(own)).list_namespaced_secret, NAMESPACE)
    assert "cannot list resource" in error.body
    assert client.VersionApi().get_code().git_version.startswith("v1.36")


def main():
    config.load_kube_config()
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    until("service account", lambda: not missing(core.read_namespaced_service_account, "default", NAMESPACE))
    checks = {
        "objects and typed errors": lambda: objects(core),
        "patches of four kinds": lambda: patches(core),
        "pages": lambda: pages(core),
        "watches": lambda: watches(core),
        "workloads, scale, eviction, refused exec and logs": lambda: workloads(core, apps),
        "custom objects": lambda: custom(client.ApiextensionsV1Api(), client.CustomObjectsApi()),
        "dynamic client": dynamically,
        "tokens and access": lambda: access(core),
    }
    for name, check in checks.items():
        check()
        print("ok", name, flush=True)
    core.delete_namespace(NAMESPACE)


main()
