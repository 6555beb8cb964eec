//! The `authorizer` of expressions: a question that is put together call by call, and asked by `check`.

/// Who may do what, as an expression asks it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Check {
    /// Namespace and name when it is about another service account than the user.
    pub service_account: Option<(String, String)>,
    /// Set when it is about a path.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
    pub verb: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    /// Why there is none.
    pub error: Option<String>,
}

/// Answers questions; the request's authorizer.
pub trait Decide {
    fn decide(&self, check: &Check) -> Decision;
}

/// Where nobody can be asked.
pub struct Nobody;

impl Decide for Nobody {
    fn decide(&self, _: &Check) -> Decision {
        Decision { error: Some("there is no authorizer here".into()), ..Decision::default() }
    }
}

/// A step on the way to an answer.
#[derive(Debug, Clone)]
pub struct Authorizer {
    pub check: Check,
    pub stage: Stage,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
    Decided(Decision),
}

impl Default for Authorizer {
    fn default() -> Authorizer {
        Authorizer::new()
    }
}

impl Authorizer {
    /// The variable `authorizer`.
    pub fn new() -> Authorizer {
        Authorizer { check: Check::default(), stage: Stage::Authorizer }
    }

    pub fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
            Stage::Decided(_) => "kubernetes.authorization.Decision",
        }
    }
}
