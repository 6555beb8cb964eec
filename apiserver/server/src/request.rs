//! What a request asks for, read from its line and headers: verb, resource, options, answer form.
//!
//! Nothing here looks at the body or decides who may do it.

use std::collections::BTreeMap;

use http::{HeaderMap, Method};
use keelson_api::{FieldError, Path, Resource, Status, resource};
use percent_encoding::percent_decode_str;

/// The query parameters, first value of each name (and all values where that matters).
#[derive(Debug, Clone, Default)]
pub struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    pub fn parse(query: Option<&str>) -> Query {
        let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or("").as_bytes()) {
            out.entry(name.into_owned()).or_default().push(value.into_owned());
        }
        Query(out)
    }
    /// The first value, or nothing.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).and_then(|values| values.first()).map_or("", String::as_str)
    }
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
    pub fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }
    /// Upstream's reading of a boolean parameter: present and neither `0` nor `false`.
    pub fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(|values| values.first()).is_some_and(|v| v != "0" && v != "false")
    }
}

/// Which API object a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the method in
    /// lower case.
    pub verb: &'static str,
    /// Path parts when it is an API path.
    pub api: Option<ApiPath>,
}

/// `/apis/{group}/{version}/namespaces/{namespace}/{resource}/{name}/{subresource}`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApiPath {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource (proxy).
    pub rest: String,
}

fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

fn raw_verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "post",
        Method::PUT => "put",
        _ => method_verb(method),
    }
}

impl Info {
    /// Reads method, path and the few query parameters that decide the verb.
    pub fn read(method: &Method, path: &str, query: &Query) -> Info {
        let parts: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned())
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Info { verb: raw_verb(method), api: None },
        };
        let mut verb = method_verb(method);
        let (watched, rest) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
            _ => (false, rest),
        };
        let mut api = ApiPath { group: group.to_owned(), version: version.to_owned(), ..ApiPath::default() };
        let objects = match rest {
            ["namespaces", namespace, inner, ..]
                if group.is_empty() && matches!(*inner, "status" | "finalize") =>
            {
                api.namespace = (*namespace).to_owned();
                rest
            }
            ["namespaces", namespace, inner @ ..] if !inner.is_empty() => {
                api.namespace = (*namespace).to_owned();
                inner
            }
            ["namespaces", namespace] if group.is_empty() => {
                api.namespace = (*namespace).to_owned();
                rest
            }
            _ => rest,
        };
        if let Some((resource, inner)) = objects.split_first() {
            api.resource = (*resource).to_owned();
            if let Some((name, inner)) = inner.split_first() {
                api.name = (*name).to_owned();
                if let Some((subresource, inner)) = inner.split_first() {
                    api.subresource = (*subresource).to_owned();
                    api.rest = inner.join("/");
                }
            }
        }
        if matches!(verb, "get" | "head") {
            let watch = watched || (api.name.is_empty() && query.flag("watch"));
            verb = match (verb, api.name.is_empty()) {
                ("head", _) => "head",
                _ if watch && api.subresource.is_empty() => "watch",
                (_, true) => "list",
                (_, false) => "get",
            };
        } else if verb == "delete" && api.name.is_empty() {
            verb = "deletecollection";
        }
        Info { verb, api: Some(api) }
    }
}

impl ApiPath {
    /// The row of the built-in resource table.
    pub fn find(&self) -> Option<&'static Resource> {
        let found = resource::find(&self.group, &self.version, &self.resource)?;
        (found.namespaced || self.namespace.is_empty() || found.plural == "namespaces").then_some(found)
    }
    /// The namespace as storage and authorization see it.
    pub fn object_namespace(&self, resource: &Resource) -> &str {
        if resource.namespaced { &self.namespace } else { "" }
    }
}

/// In which form an object is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Object,
    Table,
    Partial,
    PartialList,
}

/// In which language an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// How an answer is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    pub form: Form,
    pub encoding: Encoding,
    /// What goes into `Content-Type`.
    pub content_type: &'static str,
    /// apiVersion of tables and of metadata alone.
    pub meta_version: &'static str,
    pub gzip: bool,
}

/// Kubernetes' protobuf form.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// The media types a typed answer can have.
pub const MEDIA_TYPES: [&str; 3] = ["application/json", "application/yaml", PROTOBUF];

/// One clause of an `Accept` header: the type and its parameters.
pub struct Clause<'a> {
    pub media_type: &'a str,
    params: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    pub fn param(&self, name: &str) -> &'a str {
        self.params.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v)
    }
}

/// The clauses of an `Accept` header in the order of preference.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let texts = headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let mut out: Vec<(u32, Clause)> = texts
        .flat_map(|text| text.split(','))
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media_type = parts.next().filter(|m| !m.is_empty())?;
            let params: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
            let q = params
                .iter()
                .find(|(n, _)| *n == "q")
                .and_then(|(_, v)| v.parse::<f32>().ok())
                .unwrap_or(1.0);
            Some(((q.clamp(0.0, 1.0) * 1000.0) as u32, Clause { media_type, params }))
        })
        .collect();
    out.sort_by_key(|(q, _)| std::cmp::Reverse(*q));
    out.into_iter().map(|(_, clause)| clause).collect()
}

/// Whether a large answer may be compressed.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(http::header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|e| matches!(e.trim().split(';').next(), Some("gzip"))))
}

/// Takes protobuf out of an `Accept` header, except for metadata: custom resources and metrics have no messages.
pub fn without_protobuf_objects(headers: &mut HeaderMap) {
    let Some(given) = headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()) else { return };
    if !given.contains(PROTOBUF) {
        return;
    }
    let kept: Vec<&str> = given
        .split(',')
        .filter(|clause| !clause.contains(PROTOBUF) || clause.contains("as=PartialObjectMetadata"))
        .collect();
    // Nothing left is still a wish that cannot be met.
    let text = if kept.is_empty() { "application/x-nothing".to_owned() } else { kept.join(",") };
    if let Ok(value) = http::HeaderValue::from_str(&text) {
        headers.insert(http::header::ACCEPT, value);
    }
}

impl Accept {
    /// Negotiates the form of a single object or a list (`list`).
    ///
    /// # Errors
    /// 406 when nothing the client accepts can be made.
    pub fn negotiate(headers: &HeaderMap, list: bool) -> Result<Accept, Status> {
        let gzip = accepts_gzip(headers);
        let json = Accept {
            form: Form::Object,
            encoding: Encoding::Json,
            content_type: "application/json",
            meta_version: "meta.k8s.io/v1",
            gzip,
        };
        let clauses = clauses(headers);
        if clauses.is_empty() {
            return Ok(json);
        }
        let mut typed = false;
        for clause in &clauses {
            let (content_type, encoding) = match clause.media_type {
                "application/json" | "*/*" => ("application/json", Encoding::Json),
                "application/yaml" => ("application/yaml", Encoding::Yaml),
                PROTOBUF => (PROTOBUF, Encoding::Protobuf),
                _ => continue,
            };
            typed = true;
            let meta_version = match (clause.param("g"), clause.param("v")) {
                ("meta.k8s.io", "v1beta1") => "meta.k8s.io/v1beta1",
                _ => "meta.k8s.io/v1",
            };
            let meta = clause.param("g") == "meta.k8s.io" && ["v1", "v1beta1"].contains(&clause.param("v"));
            let form = match clause.param("as") {
                "" => Form::Object,
                "Table" if meta && encoding != Encoding::Protobuf => Form::Table,
                "PartialObjectMetadata" if meta => Form::Partial,
                "PartialObjectMetadataList" if meta => Form::PartialList,
                _ => continue,
            };
            return Ok(Accept { form, encoding, content_type, meta_version, gzip });
        }
        Err(if typed { Status::not_acceptable(&MEDIA_TYPES) } else { nothing_acceptable(list) })
    }

    /// Refuses the form of a list for one object, and the other way round.
    ///
    /// # Errors
    /// 406.
    pub fn fits(&self, resource: &Resource, list: bool) -> Result<(), Status> {
        let inner =
            if resource.group.is_empty() { "core" } else { resource.group.split('.').next().unwrap_or("") };
        let message = match self.form {
            Form::Partial if list => format!(
                "you requested PartialObjectMetadata, but the requested object is a list (*{inner}.{}List)",
                resource.kind
            ),
            Form::PartialList if !list => format!(
                "you requested PartialObjectMetadataList, but the requested object is not a list (*{inner}.{})",
                resource.kind
            ),
            _ => return Ok(()),
        };
        Err(Status { message, ..Status::not_acceptable(&MEDIA_TYPES) })
    }

    /// The form of watch events: JSON lines or protobuf frames; `as=` speaks of the objects inside.
    ///
    /// # Errors
    /// 406 when neither is accepted.
    pub fn negotiate_watch(headers: &HeaderMap) -> Result<Accept, Status> {
        // Of single objects or of lists: both names are understood, the first that fits decides.
        let mut accept = Accept::negotiate(headers, true)?;
        if accept.form == Form::PartialList {
            accept.form = Form::Partial;
        }
        match accept.encoding {
            Encoding::Json => {}
            Encoding::Protobuf => accept.content_type = "application/vnd.kubernetes.protobuf;stream=watch",
            Encoding::Yaml => {
                let streams =
                    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
                return Err(Status::not_acceptable(&streams));
            }
        }
        Ok(accept)
    }
}

/// 406 when no clause names a type we can write.
fn nothing_acceptable(list: bool) -> Status {
    let streams = if list {
        ", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
    } else {
        ""
    };
    let message =
        format!("406: Not Acceptable\n\nAvailable representations: {}{streams}", MEDIA_TYPES.join(", "));
    Status { bare: false, message, ..Status::not_acceptable(&MEDIA_TYPES) }
}

/// Reads a whole number parameter; absent is none.
///
/// # Errors
/// 400 when it is no number.
pub fn number(query: &Query, name: &str) -> Result<Option<u64>, Status> {
    let text = query.get(name);
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<i64>() {
        Ok(number) => Ok(u64::try_from(number).ok()),
        Err(_) => Err(Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
    }
}

/// Reads `resourceVersion`.
///
/// # Errors
/// 400 when it is no number.
pub fn resource_version(text: &str) -> Result<Option<i64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse::<u64>().ok().and_then(|n| i64::try_from(n).ok());
    let bad = || {
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    };
    parsed.map(Some).ok_or_else(bad)
}

/// Reads `dryRun`; the answer is whether nothing is to be stored.
///
/// # Errors
/// 422 about the options object named.
pub fn dry_run(query: &Query, options_kind: &str) -> Result<bool, Status> {
    let values: Vec<&String> = query.all("dryRun").iter().filter(|v| !v.is_empty()).collect();
    if values.iter().all(|v| *v == "All") {
        return Ok(!values.is_empty());
    }
    let list = serde_json::json!(values);
    let error = FieldError::not_supported(&Path::new("dryRun"), list, &["All"]);
    Err(Status::invalid_kind("meta.k8s.io", options_kind, "", vec![error]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: Method, path: &str) -> Info {
        let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
        Info::read(&method, path, &Query::parse(query))
    }

    #[test]
    fn paths_become_requests() {
        let pod = read(Method::GET, "/api/v1/namespaces/a/pods/x/log?follow=1");
        let api = pod.api.expect("api path");
        assert_eq!((pod.verb, &*api.namespace, &*api.resource), ("get", "a", "pods"));
        assert_eq!((&*api.name, &*api.subresource), ("x", "log"));
        let watch = read(Method::GET, "/apis/apps/v1/deployments?watch=true");
        assert_eq!((watch.verb, &*watch.api.expect("api").resource), ("watch", "deployments"));
        let old = read(Method::GET, "/api/v1/watch/namespaces/a/configmaps");
        assert_eq!((old.verb, &*old.api.expect("api").namespace), ("watch", "a"));
        let namespace = read(Method::PUT, "/api/v1/namespaces/a/finalize");
        let api = namespace.api.expect("api");
        assert_eq!((&*api.resource, &*api.name, &*api.subresource), ("namespaces", "a", "finalize"));
        assert_eq!(read(Method::DELETE, "/api/v1/namespaces/a/pods").verb, "deletecollection");
        assert_eq!(read(Method::POST, "/apis/x").api, None);
    }

    #[test]
    fn accept_headers() {
        let header = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::ACCEPT, text.parse().expect("header"));
            headers
        };
        let kubectl = header("application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
        assert_eq!(Accept::negotiate(&kubectl, true).map(|a| a.form), Ok(Form::Table));
        let go = header("application/vnd.kubernetes.protobuf,application/json");
        assert_eq!(Accept::negotiate(&go, true).map(|a| a.content_type), Ok(PROTOBUF));
        let watch = Accept::negotiate_watch(&go).map(|a| (a.encoding, a.content_type));
        assert_eq!(watch, Ok((Encoding::Protobuf, "application/vnd.kubernetes.protobuf;stream=watch")));
        let table =
            header("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json");
        assert_eq!(Accept::negotiate(&table, true).map(|a| a.encoding), Ok(Encoding::Json));
        assert_eq!(Accept::negotiate(&header("text/csv"), true).map_err(|s| s.code), Err(406));
        let meta = header("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
        assert_eq!(Accept::negotiate(&meta, true).map(|a| a.form), Ok(Form::PartialList));
        assert_eq!(Accept::negotiate_watch(&meta).map(|a| a.form), Ok(Form::Partial));
    }
}
