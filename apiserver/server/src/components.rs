//! ComponentStatus: whether the other parts of the control plane answer, asked when somebody wants to know.

use keelson_api::Status;
use keelson_apiserver_core::table;
use serde_json::{Value, json};

use crate::object;
use crate::present;
use crate::request::{Accept, Form};
use crate::respond::Response;
use crate::server::Call;

/// Components with the port of this machine where they say how they are; the store is asked by itself.
const COMPONENTS: [(&str, u16); 3] = [("controller-manager", 10257), ("etcd-0", 0), ("scheduler", 10259)];

/// GET of one component or of all.
///
/// # Errors
/// 404, 406.
pub async fn answer(call: &Call<'_>) -> Result<Response, Status> {
    let wanted = call.path.name.as_str();
    if !wanted.is_empty() {
        let Some((name, port)) = COMPONENTS.into_iter().find(|(name, _)| *name == wanted) else {
            let mut status = Status::not_found(call.resource, wanted);
            status.message = format!("componentstatus {wanted:?} not found");
            status.kind = "componentstatus".to_owned();
            return Err(status);
        };
        return present::object(
            call.resource,
            call.headers,
            call.query,
            200,
            &component(call, name, port).await,
        );
    }
    let accept = Accept::negotiate(call.headers, true)?;
    accept.fits(call.resource, true)?;
    let mut all = vec![];
    for (name, port) in COMPONENTS {
        all.push(component(call, name, port).await);
    }
    let list = match accept.form {
        Form::Table => {
            let rows: Vec<&Value> = all.iter().collect();
            let include = present::include(call.query)?;
            let mut table =
                table::table(call.resource, &rows, json!({}), jiff::Timestamp::now(), include, true);
            table["apiVersion"] = accept.meta_version.into();
            table
        }
        Form::PartialList | Form::Partial => {
            let items: Vec<Value> = all.iter().map(object::partial).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": accept.meta_version, "metadata": {}, "items": items})
        }
        Form::Object => {
            json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": all})
        }
    };
    present::value(&accept, 200, &list)
}

async fn component(call: &Call<'_>, name: &str, port: u16) -> Value {
    let found = if port == 0 {
        let answered = call.server.storage.revision(call.deadline).await;
        answered.map(|_| "ok".to_owned()).map_err(|status| status.message)
    } else {
        call.server.kubelets.healthz(port).await
    };
    let (status, message) = match found {
        Ok(said) => ("True", said),
        Err(problem) => ("False", problem),
    };
    let condition = json!({"type": "Healthy", "status": status, "message": message});
    json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition]})
}
