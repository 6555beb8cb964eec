//! The operator under crashes, old views and users, in the ten lines that docs/checking-controllers.md promises; and
//! three ways to get it wrong, which must be found.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Action, Change, Key, Plan, Precondition, Reconciler, View, Watch};
use keelson_models::cluster::{MISTAKES, Scenario, keys_of, object};
use keelson_operator_example::{Website, Websites};
use serde_json::json;

fn published(world: &World) -> Result<(), String> {
    let there: Vec<String> =
        world.list::<ConfigMap>().into_iter().filter_map(|map| map.metadata.name).collect();
    let site = world.list::<Website>().remove(0);
    let wanted: Vec<String> = site.spec.pages.iter().map(|page| format!("shop-{page}")).collect();
    let status = site.status.unwrap_or_default();
    let right = there == wanted && status.published == wanted.len();
    if right { Ok(()) } else { Err(format!("pages {there:?}, wanted {wanted:?}, {status:?}")) }
}

fn scenario(operator: impl Reconciler) -> Scenario {
    let site: Website =
        object(json!({"metadata": {"name": "shop", "namespace": "d"}, "spec": {"pages": ["old"]}}));
    let change = |world: &mut World, key: &Key| {
        world.edit::<Website>(key, |site| {
            let more = site.spec.pages.len() < 2;
            site.spec.pages = if more { vec!["about".into(), "home".into()] } else { vec!["home".into()] };
        });
    };
    Scenario::new("websites")
        .object(&site)
        .controller(operator, keys_of::<Website>)
        .desired(published)
        .settled()
        .then(|world| change(world, &Key::new("d", "shop")))
        .lag(3)
        .trouble("a user changes the pages", 2, keys_of::<Website>, change)
        .trouble("somebody deletes a page", 1, keys_of::<ConfigMap>, |world, key| {
            world.remove::<ConfigMap>(key)
        })
}

#[test]
fn websites_are_published_whatever_happens() {
    let report = scenario(Websites).check();
    assert!(report.holds(), "{}", report.failures());
    assert_eq!(report.unique, 1_143, "the reach changed: look why, then set the new count");
}

#[test]
fn a_runner_without_its_promises_is_found() {
    for mistake in MISTAKES {
        let report = scenario(Websites).with(mistake).check();
        assert!(!report.holds(), "{mistake:?}: nothing noticed");
    }
}

/// A `Websites` whose plans somebody changes.
struct Changed(fn(&View, &Key, Plan) -> Plan);

impl Reconciler for Changed {
    fn name(&self) -> &'static str {
        "websites"
    }
    fn watches(&self) -> Vec<Watch> {
        Websites.watches()
    }
    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        Websites.keys(change, view)
    }
    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        (self.0)(view, key, Websites.reconcile(key, view, now))
    }
}

/// It says that all is published first, and takes its own word for it: a crash in between is never made good.
#[test]
fn a_status_written_before_the_work_is_found() {
    let hasty = Changed(|view, key, mut plan| {
        let site = view.get::<Website>(key).expect("the site stays");
        let all = site.spec.pages.len();
        if site.status.as_ref().is_some_and(|status| status.published == all) && all == 2 {
            return Plan::none();
        }
        plan.actions.retain(|action| !matches!(action, Action::Patch { .. }));
        let mut done = Plan::none();
        let mut new = (**site).clone();
        new.status = Some(keelson_operator_example::WebsiteStatus { published: all });
        done.update_status(site.as_ref(), &new);
        done.actions.append(&mut plan.actions);
        done
    });
    let report = scenario(hasty).check();
    assert!(report.failures().contains("C26"), "{}", report.failures());
}

/// It deletes by name alone.
#[test]
fn a_delete_without_a_precondition_is_found() {
    let rash = Changed(|_, _, mut plan| {
        for action in &mut plan.actions {
            if let Action::Delete { precondition, .. } = action {
                *precondition = Precondition::default();
            }
        }
        plan
    });
    let report = scenario(rash).check();
    assert!(report.failures().contains("C25"), "{}", report.failures());
}

/// It writes its status each time it looks.
#[test]
fn a_status_that_never_rests_is_found() {
    let restless = Changed(|view, key, mut plan| {
        let site = view.get::<Website>(key).expect("the site stays");
        let beat = site.status.as_ref().map_or(0, |status| status.published % 7 + 1);
        plan.patch(site.as_ref(), json!({"status": {"published": beat}}), Precondition::same(site.as_ref()));
        plan
    });
    let outcome = std::panic::catch_unwind(|| scenario(restless).check());
    let story = outcome.err().and_then(|panic| panic.downcast::<String>().ok());
    assert!(story.is_some_and(|story| story.contains("C27")), "it settles, or ends otherwise");
}
