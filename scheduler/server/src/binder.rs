//! The binding of one pod, start to end: write what must come before, wait for its claims, bind, and when the answer
//! is not plain read the pod back until it is. What each outcome means is `keelson_scheduler_core::binding`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use keelson_scheduler_core::PodInfo;
use keelson_scheduler_core::binding::{AfterBind, BindAnswer, Observed, after_bind};
use keelson_scheduler_core::framework::PreBind;
use keelson_scheduler_core::volumes::{BIND_COMPLETED, SELECTED_NODE};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tracing::warn;

/// How long a pod waits for its volumes before it is tried again, as upstream.
const VOLUME_TIMEOUT: Duration = Duration::from_secs(600);
/// One request's patience.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How it ended.
#[derive(Debug)]
pub struct BindOutcome {
    pub pod: Arc<PodInfo>,
    pub node: String,
    /// Never `ReadBack` or `BindAgain`.
    pub after: AfterBind,
    /// Why not, for the event.
    pub message: String,
}

/// Binds. Ends only with a definite outcome; the caller drops it when the term ends.
pub async fn bind(client: Client, pod: Arc<PodInfo>, node: String, pre_bind: Vec<PreBind>) -> BindOutcome {
    if let Err(error) = prepare(&client, &pod, &node, &pre_bind).await {
        let after = AfterBind::ForgetAndRequeue;
        return BindOutcome {
            pod,
            node,
            after,
            message: format!("running PreBind plugin \"VolumeBinding\": {error:#}"),
        };
    }
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let (mut answer, mut message) = send(&pods, &pod, &node).await;
    let mut observed = None;
    let mut pause = Duration::from_millis(50);
    loop {
        match after_bind(&node, answer, observed.as_ref()) {
            AfterBind::ReadBack => {}
            AfterBind::BindAgain => {
                (answer, message) = send(&pods, &pod, &node).await;
                observed = None;
                if answer == BindAnswer::Accepted {
                    continue;
                }
            }
            after => return BindOutcome { pod, node, after, message },
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
        observed = Some(read_back(&pods, &pod).await);
    }
}

async fn send(pods: &Api<Pod>, pod: &PodInfo, node: &str) -> (BindAnswer, String) {
    let mut binding = Binding::default();
    binding.metadata.name = Some(pod.name.clone());
    binding.metadata.namespace = Some(pod.namespace.clone());
    binding.metadata.uid = Some(pod.uid.clone());
    binding.target =
        ObjectReference { kind: Some("Node".into()), name: Some(node.into()), ..ObjectReference::default() };
    let params = PostParams::default();
    let request = pods.create_subresource::<_, serde_json::Value>("binding", &pod.name, &params, &binding);
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(_)) => (BindAnswer::Accepted, String::new()),
        Ok(Err(kube::Error::Api(status))) => (BindAnswer::from_code(status.code), status.message.clone()),
        Ok(Err(error)) => (BindAnswer::Unknown, error.to_string()),
        Err(_) => (BindAnswer::Unknown, format!("no answer in {} s", REQUEST_TIMEOUT.as_secs())),
    }
}

async fn read_back(pods: &Api<Pod>, pod: &PodInfo) -> Observed {
    match tokio::time::timeout(REQUEST_TIMEOUT, pods.get_opt(&pod.name)).await {
        Ok(Ok(Some(found))) if found.uid().as_deref() == Some(pod.uid.as_str()) => {
            Observed::Node(found.spec.and_then(|spec| spec.node_name).unwrap_or_default())
        }
        Ok(Ok(_)) => Observed::Gone,
        Ok(Err(error)) => {
            warn!(%error, pod = pod.key(), "reading a pod back after its bind: retrying");
            Observed::Unreadable
        }
        Err(_) => Observed::Unreadable,
    }
}

/// Writes the volume decisions and waits until every claim of the pod is bound.
async fn prepare(client: &Client, pod: &PodInfo, node: &str, actions: &[PreBind]) -> anyhow::Result<()> {
    if actions.is_empty() {
        return Ok(());
    }
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &pod.namespace);
    for action in actions {
        match action {
            PreBind::SelectNode { claim, .. } => {
                let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
                claims.patch(claim, &PatchParams::default(), &Patch::Merge(patch)).await?;
            }
            PreBind::BindVolume { volume, claim, .. } => {
                let claim = claims.get(claim).await?;
                reserve(client, volume, &claim).await?;
            }
        }
    }
    let names = actions.iter().map(|action| match action {
        PreBind::SelectNode { claim, .. } | PreBind::BindVolume { claim, .. } => claim.as_str(),
    });
    let names: Vec<&str> = names.collect();
    match tokio::time::timeout(VOLUME_TIMEOUT, bound(&claims, &names, node, actions)).await {
        Ok(outcome) => outcome,
        Err(_) => anyhow::bail!("binding volumes: timed out after {} s", VOLUME_TIMEOUT.as_secs()),
    }
}

/// Points a free volume at the claim; the volume binder does the rest.
async fn reserve(client: &Client, volume: &str, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let mut found = volumes.get(volume).await?;
    let spec = found.spec.get_or_insert_default();
    if let Some(holder) = &spec.claim_ref
        && (&holder.namespace, &holder.name) != (&claim.metadata.namespace, &claim.metadata.name)
    {
        anyhow::bail!("volume {volume} was bound to another claim meanwhile");
    }
    spec.claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.namespace(),
        name: claim.metadata.name.clone(),
        uid: claim.uid(),
        resource_version: claim.resource_version(),
        ..ObjectReference::default()
    });
    found.annotations_mut().insert("pv.kubernetes.io/bound-by-controller".into(), "yes".into());
    volumes.replace(volume, &PostParams::default(), &found).await?;
    Ok(())
}

/// Waits until the claims are bound; fails when one is gone or its node was taken back (provisioning failed).
async fn bound(
    claims: &Api<PersistentVolumeClaim>,
    names: &[&str],
    node: &str,
    actions: &[PreBind],
) -> anyhow::Result<()> {
    let mut pause = Duration::from_millis(100);
    loop {
        let mut open = 0;
        for name in names {
            let claim = claims.get(name).await?;
            let annotations = claim.annotations();
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
            if annotations.contains_key(BIND_COMPLETED) && !volume.is_empty() {
                continue;
            }
            open += 1;
            let selected = actions
                .iter()
                .any(|action| matches!(action, PreBind::SelectNode { claim, .. } if claim == name));
            if selected && annotations.get(SELECTED_NODE).map(String::as_str) != Some(node) {
                anyhow::bail!("provisioning failed for PVC {name:?}: its node was taken back");
            }
        }
        if open == 0 {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use std::collections::VecDeque;
    use std::sync::Mutex;

    /// An API server of one pod: answers binds with the given codes, applying those marked so, and counts them.
    struct Server {
        answers: VecDeque<(u16, bool)>,
        node: Option<&'static str>,
        binds: usize,
    }

    fn answer(server: &Mutex<Server>, request: &Request<Body>) -> Response<Body> {
        let mut server = server.lock().expect("not poisoned");
        let (code, body) = if request.method() == "POST" {
            server.binds += 1;
            let (code, applied) = server.answers.pop_front().unwrap_or((201, true));
            if applied && server.node.is_none() {
                server.node = Some("n1");
            }
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": if code < 300 { "Success" } else { "Failure" },
                "code": code, "message": "as told", "reason": "Told"}),
            )
        } else {
            let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "namespace": "d", "uid": "u"},
                "spec": {"containers": [], "nodeName": server.node}});
            (200, pod)
        };
        let bytes = serde_json::to_vec(&body).expect("JSON");
        Response::builder().status(code).body(Body::from(bytes)).expect("a response")
    }

    async fn outcome(answers: &[(u16, bool)], node: Option<&'static str>) -> (AfterBind, usize) {
        let server =
            Arc::new(Mutex::new(Server { answers: answers.iter().copied().collect(), node, binds: 0 }));
        let shared = server.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let response = answer(&shared, &request);
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let pod =
            json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {"containers": []}});
        let pod = PodInfo::new(&serde_json::from_value(pod).expect("a pod"));
        let outcome = bind(Client::new(service, "d"), Arc::new(pod), "n1".into(), Vec::new()).await;
        let binds = server.lock().expect("not poisoned").binds;
        (outcome.after, binds)
    }

    #[tokio::test]
    async fn an_accepted_bind_is_sent_once() {
        assert_eq!(outcome(&[(201, true)], None).await, (AfterBind::Bound, 1));
    }

    #[tokio::test]
    async fn a_bind_whose_answer_is_lost_is_found_by_reading_back() {
        assert_eq!(outcome(&[(504, true)], None).await, (AfterBind::Bound, 1));
    }

    #[tokio::test]
    async fn a_bind_that_never_arrived_is_sent_again() {
        assert_eq!(outcome(&[(503, false), (201, true)], None).await, (AfterBind::Bound, 2));
    }

    #[tokio::test]
    async fn a_refused_bind_is_forgotten_and_tried_anew() {
        assert_eq!(outcome(&[(403, false)], None).await, (AfterBind::ForgetAndRequeue, 1));
    }

    #[tokio::test]
    async fn a_pod_that_is_bound_elsewhere_is_left_alone() {
        assert_eq!(outcome(&[(409, false)], Some("n2")).await, (AfterBind::Forget, 1));
    }
}
