//! What expressions of policies and match conditions may speak of, and their compilation, once a text.

use crate::value::{items, text};
use keelson_cel::{AUTHORIZER, Env, Object, Program, RESOURCE_CHECK, Type};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Which variables there are beside `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    pub params: bool,
    pub authorizer: bool,
    /// `Object{…}` and `JSONPatch{…}`.
    pub patches: bool,
}

/// Types of a policy's variables, in the order they are declared.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    pub known: Vec<(String, Type)>,
    /// There are some, though none may be known yet.
    pub declared: bool,
}

impl Variables {
    /// Those that are declared before one.
    pub fn before(&self, i: usize) -> Variables {
        Variables { known: self.known[..i].to_vec(), declared: self.declared }
    }
}

static REQUEST: LazyLock<Type> = LazyLock::new(|| {
    let string = |name| (name, Type::String);
    let kind = Type::object("kubernetes.GroupVersionKind", ["group", "version", "kind"].map(string));
    let resource =
        Type::object("kubernetes.GroupVersionResource", ["group", "version", "resource"].map(string));
    let strings = Type::list(Type::String);
    let user = Type::object(
        "kubernetes.UserInfo",
        [
            string("username"),
            string("uid"),
            ("groups", strings.clone()),
            ("extra", Type::map(Type::String, strings)),
        ],
    );
    Type::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            string("subResource"),
            ("requestKind", kind),
            ("requestResource", resource),
            string("requestSubResource"),
            string("name"),
            string("namespace"),
            string("operation"),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
});

static NAMESPACE: LazyLock<Type> = LazyLock::new(|| {
    let string = |name| (name, Type::String);
    let (strings, texts) = (Type::list(Type::String), Type::map(Type::String, Type::String));
    let condition = Type::object(
        "kubernetes.NamespaceCondition",
        [
            string("status"),
            string("type"),
            ("lastTransitionTime", Type::Timestamp),
            string("message"),
            string("reason"),
        ],
    );
    let status =
        Type::object("kubernetes.NamespaceStatus", [("conditions", Type::list(condition)), string("phase")]);
    let metadata = Type::object(
        "kubernetes.NamespaceMetadata",
        [
            string("name"),
            string("generateName"),
            string("namespace"),
            ("labels", texts.clone()),
            ("annotations", texts),
            string("UID"),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            string("resourceVersion"),
            ("finalizers", strings.clone()),
        ],
    );
    let spec = Type::object("kubernetes.NamespaceSpec", [("finalizers", strings)]);
    Type::object("kubernetes.Namespace", [("metadata", metadata), ("spec", spec), ("status", status)])
});

fn env(scope: Scope, variables: &Variables) -> Env {
    let mut env = Env::new([
        ("object", Type::Dyn),
        ("oldObject", Type::Dyn),
        ("namespaceObject", NAMESPACE.clone()),
        ("request", REQUEST.clone()),
    ]);
    let mut add = |name: &str, of: Type| env.variables.insert(name.to_owned(), of);
    if scope.params {
        add("params", Type::Dyn);
    }
    if scope.authorizer {
        add("authorizer", AUTHORIZER);
        add("authorizer.requestResource", RESOURCE_CHECK);
    }
    if variables.declared {
        let fields: BTreeMap<String, Type> = variables.known.iter().cloned().collect();
        // Reading one variable must not evaluate the others: each is a name of its own.
        for (name, of) in &variables.known {
            add(&format!("variables.{name}"), of.clone());
        }
        let whole = Object { name: "kubernetes.variables".into(), fields, open: false };
        add("variables", Type::Object(Arc::new(whole)));
    }
    env.patches = scope.patches;
    env
}

/// Compiles an expression.
///
/// # Errors
/// Every mistake in it, as upstream prints them.
pub fn compile(source: &str, scope: Scope, variables: &Variables) -> Result<Program, String> {
    env(scope, variables).compile(source).map_err(|e| format!("compilation failed: {e}"))
}

/// Compiles an expression that has to be of one of some types.
///
/// # Errors
/// Every mistake, or that it has another type.
pub fn compile_as(
    source: &str,
    scope: Scope,
    variables: &Variables,
    wanted: &[Type],
) -> Result<Program, String> {
    let program = compile(source, scope, variables)?;
    let found = program.output();
    if wanted.contains(found) {
        return Ok(program);
    }
    match wanted {
        [one] => Err(format!("must evaluate to {one} but got {found}")),
        many => {
            let names: Vec<String> = many.iter().map(ToString::to_string).collect();
            Err(format!("must evaluate to one of [{}] but got {found}", names.join(" ")))
        }
    }
}

/// The variables of a policy with their types; one that does not compile may be anything.
pub fn variables(spec: &Value, scope: Scope) -> Variables {
    let list = items(spec, "variables");
    let mut all = Variables { known: vec![], declared: !list.is_empty() };
    for variable in list {
        let program = compile(text(variable, "expression"), scope, &all);
        let of = program.map_or(Type::Dyn, |p| p.output().clone());
        all.known.push((text(variable, "name").to_owned(), of));
    }
    all
}

type Compiled = Result<Arc<Program>, String>;

/// Expressions that were compiled, by what they may speak of. Compiling is dear and policies are few; what is kept
/// changes no result.
static COMPILED: Mutex<BTreeMap<(Scope, String, String), Compiled>> = Mutex::new(BTreeMap::new());
const KEPT: usize = 4096;

/// The program of a stored expression. Variables are taken to be anything: what they are was checked when the policy was.
///
/// # Errors
/// Mistakes of an expression that was stored by somebody less strict.
pub fn stored(source: &str, scope: Scope, names: &[&str]) -> Compiled {
    let key = (scope, names.join(" "), source.to_owned());
    let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept.get(&key) {
        return known.clone();
    }
    let known = names.iter().map(|name| ((*name).to_owned(), Type::Dyn)).collect();
    let variables = Variables { known, declared: !names.is_empty() };
    let compiled = compile(source, scope, &variables).map(Arc::new);
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(key, compiled.clone());
    compiled
}
