//! Anybody's reconcilers in a small cluster, exhaustively: controllers that see old views and whose plans are cut short,
//! beside kubelets and users who do what they do in any order.
//!
//! A [`Scenario`] names the objects to begin with, the controllers, what others may do (`fair`: what always happens in
//! the end; `trouble`: what may happen so many times), the rules of each step and the state that is desired. A state of
//! the model holds the API server's objects as they are (`World` of `controllers/core`), the last few writes, and how
//! much of its own writes each controller's key has seen. A reconcile takes a view up to `lag` writes old, but never one
//! that lacks its own writes (the runner's promise), and runs its whole plan or, as a fault, a first part of it. A
//! leader changes: notes are lost. Time passes in steps.
//!
//! Shown of every scenario: the rules hold at every step; nothing is changed or removed without a precondition, and
//! nothing but what the view had seen (C25); from every state, once faults stop, the desired state is reached (C26) and
//! nothing more is written then (C27).
//!
//! Omitted, and why that is sound: other requests between the actions of one plan (each action on what exists is guarded
//! by a precondition; unguarded creates are the subject of the ReplicaSet model), resource versions beyond their age and
//! uids beyond their order (only equality counts), a different lag for each resource (a view is a past state of all).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use keelson_controllers_core::world::World;
use keelson_controllers_core::{Action, ApiResource, Gvr, Key, Object, Plan, Precondition, Reconciler};
use stateright::{Model, Property};

use crate::catalogue::{Bound, Report, explore};

/// Steps of everybody in which the desired state must come.
const PATIENCE: usize = 120;
/// Writes in a row that controllers may need for what lies before them.
const BUSY: usize = 60;
/// Steps of time that are waited for what is desired.
const WAITS: usize = 40;

type Keys = Arc<dyn Fn(&World) -> Vec<Key> + Send + Sync>;
type Act = Arc<dyn Fn(&mut World, &Key) + Send + Sync>;
type Rule = Arc<dyn Fn(&World) -> Result<(), String> + Send + Sync>;
type Condition = Arc<dyn Fn(&World) -> bool + Send + Sync>;

#[derive(Clone)]
struct Controller {
    reconciler: Arc<dyn Reconciler>,
    keys: Keys,
}

/// What somebody else does.
#[derive(Clone)]
struct Turn {
    name: &'static str,
    /// How many times; none for always, in the end.
    most: Option<u8>,
    keys: Keys,
    act: Act,
}

/// A mistake in the way a controller is run, each of which one of Sieve's perturbations brings out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A plan that was cut short counts as done: what it was made for is not looked at again. Brought out by an
    /// intermediate state.
    TakesBegunForDone,
    /// It goes by changes, not by states: an object that has changed again before it looked stays for it what it was.
    /// Brought out by an unobserved state.
    MissesWhatChangedTwice,
    /// It acts on views that lack its own writes, without preconditions. Brought out by a stale state.
    TrustsOldViews,
}

/// Every one.
pub const MISTAKES: [Mistake; 3] =
    [Mistake::TakesBegunForDone, Mistake::MissesWhatChangedTwice, Mistake::TrustsOldViews];

/// What is checked, and how far.
#[derive(Clone)]
pub struct Scenario {
    name: &'static str,
    begin: World,
    controllers: Vec<Controller>,
    turns: Vec<Turn>,
    rules: Vec<Rule>,
    desired: Rule,
    reached: Vec<(&'static str, Condition)>,
    resources: Vec<ApiResource>,
    /// How many writes a view may lag behind.
    lag: usize,
    /// Plans that are cut short, after one action or two.
    cuts: u8,
    leaders: u8,
    /// Seconds of a step of time, and how many of them there are.
    tick: (i64, u8),
    mistake: Option<Mistake>,
    /// Prints of states from which the desired one was reached.
    good: Arc<Mutex<BTreeSet<u64>>>,
    why: Arc<Mutex<Option<String>>>,
    late: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
}

/// The keys of all objects of a type.
pub fn keys_of<K: Object>(world: &World) -> Vec<Key> {
    world.list::<K>().iter().map(Key::of).collect()
}

/// An object from JSON.
///
/// # Panics
/// When it is not one.
pub fn object<K: Object>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("a sound object")
}

impl Scenario {
    /// An empty cluster in which nothing is desired yet; views lag up to two writes, one plan is cut short.
    pub fn new(name: &'static str) -> Scenario {
        Scenario {
            name,
            begin: World::default(),
            controllers: Vec::new(),
            turns: Vec::new(),
            rules: Vec::new(),
            desired: Arc::new(|_| Ok(())),
            reached: Vec::new(),
            resources: Vec::new(),
            lag: 2,
            cuts: 1,
            leaders: 0,
            tick: (0, 0),
            mistake: None,
            good: Arc::default(),
            why: Arc::default(),
            late: Arc::default(),
            cut: Arc::default(),
        }
    }

    /// An object that is there from the beginning.
    pub fn object<K: Object>(mut self, object: &K) -> Scenario {
        self.begin.put(object);
        self
    }

    /// A controller, and the keys that it looks at.
    pub fn controller(
        mut self,
        reconciler: impl Reconciler,
        keys: impl Fn(&World) -> Vec<Key> + Send + Sync + 'static,
    ) -> Scenario {
        self.controllers.push(Controller { reconciler: Arc::new(reconciler), keys: Arc::new(keys) });
        self
    }

    /// What others do at any time, and always in the end. `act` must write nothing when nothing is to be done.
    pub fn fair(
        mut self,
        name: &'static str,
        keys: impl Fn(&World) -> Vec<Key> + Send + Sync + 'static,
        act: impl Fn(&mut World, &Key) + Send + Sync + 'static,
    ) -> Scenario {
        self.turns.push(Turn { name, most: None, keys: Arc::new(keys), act: Arc::new(act) });
        self
    }

    /// What others may do, so many times.
    pub fn trouble(
        mut self,
        name: &'static str,
        most: u8,
        keys: impl Fn(&World) -> Vec<Key> + Send + Sync + 'static,
        act: impl Fn(&mut World, &Key) + Send + Sync + 'static,
    ) -> Scenario {
        self.turns.push(Turn { name, most: Some(most), keys: Arc::new(keys), act: Arc::new(act) });
        self
    }

    /// What must hold at every step; the error says what does not, beginning with its id.
    pub fn always(mut self, rule: impl Fn(&World) -> Result<(), String> + Send + Sync + 'static) -> Scenario {
        self.rules.push(Arc::new(rule));
        self
    }

    /// The state to reach and to stay in.
    pub fn desired(
        mut self,
        rule: impl Fn(&World) -> Result<(), String> + Send + Sync + 'static,
    ) -> Scenario {
        self.desired = Arc::new(rule);
        self
    }

    /// A state that must be among those explored, or the scenario proves too little. Up to four.
    ///
    /// # Panics
    /// At the fifth.
    pub fn sometimes(
        mut self,
        name: &'static str,
        condition: impl Fn(&World) -> bool + Send + Sync + 'static,
    ) -> Scenario {
        assert!(self.reached.len() < REACHED.len(), "{}: too many conditions", self.name);
        self.reached.push((name, Arc::new(condition)));
        self
    }

    /// The kinds that the API server knows, for controllers that read the graph.
    pub fn resources(mut self, kinds: &[(Gvr, &str, bool)]) -> Scenario {
        self.resources = World::resources(kinds);
        self
    }

    /// How many writes a view may lag behind.
    pub fn lag(mut self, writes: usize) -> Scenario {
        self.lag = writes;
        self
    }

    /// How many plans are cut short.
    pub fn cuts(mut self, plans: u8) -> Scenario {
        self.cuts = plans;
        self
    }

    /// How many times the leader changes, and all notes are lost.
    pub fn leaders(mut self, changes: u8) -> Scenario {
        self.leaders = changes;
        self
    }

    /// Time passes in steps of so many seconds, so many times at any moment; in the end as long as something waits.
    pub fn time(mut self, seconds: i64, steps: u8) -> Scenario {
        self.tick = (seconds, steps);
        self
    }

    /// The same with controllers that are run with a mistake.
    pub fn with(mut self, mistake: Mistake) -> Scenario {
        self.mistake = Some(mistake);
        self
    }

    /// Everybody in turn on fresh views until the desired state is there: where a scenario with something to roll out
    /// begins.
    ///
    /// # Panics
    /// When it does not come.
    pub fn settled(mut self) -> Scenario {
        let cluster = self.cluster();
        match self.settle(&cluster, false) {
            Ok(settled) => self.begin = settled.world,
            Err(why) => panic!("{}: not settled to begin with: {why}", self.name),
        }
        self.begin.notes.clear();
        self
    }

    /// A change of the world before everything begins.
    pub fn then(mut self, change: impl FnOnce(&mut World)) -> Scenario {
        change(&mut self.begin);
        self
    }

    /// What ordinary tests try: everybody in turn on fresh views, also after each trouble.
    ///
    /// # Errors
    /// What is wrong then.
    pub fn fairly(&self) -> Result<(), String> {
        let settled = self.settle(&self.cluster(), false)?;
        for (at, turn) in self.turns.iter().enumerate().filter(|(_, turn)| turn.most.is_some()) {
            for key in (turn.keys)(&settled.world) {
                let mut after = settled.clone();
                self.take(&mut after, at, &key);
                self.settle(&after, false).map_err(|why| format!("after {} {key}: {why}", turn.name))?;
            }
        }
        Ok(())
    }

    /// Explores all of it.
    pub fn check(self) -> Report {
        self.run(Bound::Smoke)
    }

    /// Explores all of it, or shows it in a browser.
    pub fn run(self, bound: Bound) -> Report {
        let (name, why) = (self.name, self.why.clone());
        self.good().clear();
        let mut report = explore(name, bound, self);
        let why = why.lock().expect("no panic while locked").take();
        for property in
            report.properties.iter_mut().filter(|property| property.name == ENDS && !property.holds)
        {
            if let (Some(steps), Some(why)) = (property.counterexample.as_mut(), &why) {
                steps.push_str(&format!("  and then: {why}\n"));
            }
        }
        report
    }
}

/// A state: the API server's objects, and what everybody knows of them.
#[derive(Clone)]
pub struct Cluster {
    pub world: World,
    /// The version that holds a controller's own last write for a key.
    own: BTreeMap<(usize, Key), usize>,
    /// Of controllers run with a mistake: the version last looked at (and acted on).
    looked: BTreeMap<(usize, Key), usize>,
    /// Likewise: objects it has lost sight of, and the version it still sees of them.
    held: BTreeMap<(usize, Key), BTreeMap<(Gvr, Key), usize>>,
    cuts: u8,
    leaders: u8,
    ticks: u8,
    taken: Vec<u8>,
    broken: Option<String>,
    print: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A controller looks at a key on a view that lags so far behind, and runs its plan or so many actions of it.
    Reconcile { controller: &'static str, at: usize, key: Key, lag: usize, cut: Option<usize> },
    /// Somebody else does something.
    Turn { name: &'static str, at: usize, key: Key },
    /// The controllers' leader changes.
    Leader,
    /// So many seconds pass.
    Pass(i64),
}

fn writes(action: &Action) -> bool {
    !matches!(action, Action::Expect(_) | Action::Record(_))
}

/// The object that an action changes or removes, and under which precondition.
fn guarded(action: &Action) -> Option<(&Gvr, &Key, &Precondition)> {
    match action {
        Action::Patch { target, precondition, .. } | Action::Delete { target, precondition, .. } => {
            Some((&target.resource, &target.key, precondition))
        }
        _ => None,
    }
}

fn without_precondition(action: &Action) -> Action {
    let mut action = action.clone();
    if let Action::Patch { precondition, .. } | Action::Delete { precondition, .. } = &mut action {
        *precondition = Precondition::default();
    }
    action
}

impl Scenario {
    fn cluster(&self) -> Cluster {
        let mut cluster = Cluster {
            world: self.begin.clone(),
            own: BTreeMap::new(),
            looked: BTreeMap::new(),
            held: BTreeMap::new(),
            cuts: 0,
            leaders: 0,
            ticks: 0,
            taken: vec![0; self.turns.len()],
            broken: None,
            print: 0,
        };
        cluster.print = self.print(&cluster);
        cluster
    }

    /// How old a view this key's controller may be shown.
    fn seen(&self, cluster: &Cluster, at: usize, key: &Key, lag: usize) -> usize {
        let seen = cluster.world.version().saturating_sub(lag);
        let own = cluster.own.get(&(at, key.clone())).copied().unwrap_or(0);
        if self.mistake == Some(Mistake::TrustsOldViews) { seen } else { seen.max(own) }
    }

    /// What a controller run with a mistake makes of the changes since its last look; whether it looks at all.
    fn looks(&self, cluster: &mut Cluster, at: usize, key: &Key, seen: usize) -> bool {
        let place = (at, key.clone());
        let Some(last) = cluster.looked.get(&place).copied() else { return true };
        let changes = cluster.world.writes(last, seen);
        match self.mistake {
            Some(Mistake::TakesBegunForDone) => {
                let watches = self.controllers[at].reconciler.watches();
                changes.iter().any(|(resource, _)| watches.iter().any(|watch| watch.resource == *resource))
            }
            Some(Mistake::MissesWhatChangedTwice) => {
                let mut times: BTreeMap<(Gvr, Key), usize> = BTreeMap::new();
                changes.into_iter().for_each(|object| *times.entry(object).or_default() += 1);
                let held = cluster.held.entry(place).or_default();
                for (object, times) in times {
                    if times == 1 {
                        held.remove(&object);
                    } else {
                        held.entry(object).or_insert(last);
                    }
                }
                true
            }
            _ => true,
        }
    }

    /// One look of a controller. `cut`: the plan ends after so many writes.
    fn reconcile(&self, cluster: &mut Cluster, at: usize, key: &Key, lag: usize, cut: Option<usize>) {
        let reconciler = &self.controllers[at].reconciler;
        let seen = self.seen(cluster, at, key, lag);
        if !self.looks(cluster, at, key, seen) {
            return;
        }
        let world = &mut cluster.world;
        let mut view = match cluster.held.get(&(at, key.clone())).filter(|held| !held.is_empty()) {
            Some(held) => world.view_but(&reconciler.watches(), seen, held),
            None => world.view(&reconciler.watches(), seen),
        };
        if !self.resources.is_empty() {
            view.graph.set_resources(self.resources.clone());
        }
        let plan = reconciler.reconcile(key, &view, world.now);
        let many = plan.actions.iter().filter(|action| writes(action)).count();
        if cut.is_some_and(|cut| cut >= many) {
            return;
        }
        let place = (reconciler.name(), key.clone());
        match plan.note.clone() {
            Some(note) => world.notes.insert(place, note),
            None => world.notes.remove(&place),
        };
        let before = world.version();
        let whole = self.carry_out(cluster, &plan, seen, cut);
        let after = cluster.world.version();
        let place = (at, key.clone());
        let acted = after > before;
        let looked = match self.mistake {
            Some(Mistake::TakesBegunForDone) => (!whole).then_some(after),
            Some(Mistake::MissesWhatChangedTwice) => Some(after.max(seen)),
            _ => None,
        };
        match looked {
            Some(version) => cluster.looked.insert(place.clone(), version),
            None => cluster.looked.remove(&place),
        };
        if acted {
            cluster.own.insert(place, after);
            self.late.fetch_or(seen < before, Ordering::Relaxed);
            self.cut.fetch_or(cut.is_some(), Ordering::Relaxed);
        }
    }

    /// Whether all of it was done.
    fn carry_out(&self, cluster: &mut Cluster, plan: &Plan, seen: usize, cut: Option<usize>) -> bool {
        let mut done = 0;
        for action in &plan.actions {
            if cut == Some(done) {
                return false;
            }
            done += usize::from(writes(action));
            let strange = self.strange(cluster, action, seen);
            let outcome = match self.mistake {
                Some(Mistake::TrustsOldViews) if matches!(action, Action::Expect(_)) => Ok(()),
                Some(Mistake::TrustsOldViews) => cluster.world.act(&without_precondition(action)),
                _ => cluster.world.act(action),
            };
            if outcome.is_err() {
                return false;
            }
            if strange.is_some() {
                cluster.broken = strange;
            }
            self.judge(cluster);
        }
        true
    }

    /// C25: what is wrong with an action on what exists, should it be accepted.
    fn strange(&self, cluster: &Cluster, action: &Action, seen: usize) -> Option<String> {
        let (resource, key, precondition) = guarded(action)?;
        if precondition.uid.is_none() && precondition.resource_version.is_none() {
            return Some(format!("C25 {resource} {key} is changed without a precondition"));
        }
        let uid =
            |value: Option<Arc<serde_json::Value>>| Some(value?["metadata"]["uid"].as_str()?.to_owned());
        let was = uid(cluster.world.value_at(resource, key, seen));
        let another = was.is_some() && was != uid(cluster.world.value(resource, key));
        another.then(|| format!("C25 {resource} {key} was another when the plan was made"))
    }

    fn take(&self, cluster: &mut Cluster, at: usize, key: &Key) {
        (self.turns[at].act)(&mut cluster.world, key);
        self.judge(cluster);
    }

    fn judge(&self, cluster: &mut Cluster) {
        if cluster.broken.is_none() {
            cluster.broken = self.rules.iter().find_map(|rule| rule(&cluster.world).err());
        }
    }

    /// All controllers on fresh views, until none has anything to write.
    fn work_off(&self, cluster: &mut Cluster) -> Result<(), String> {
        for _ in 0..BUSY {
            let before = cluster.world.version();
            for at in 0..self.controllers.len() {
                for key in (self.controllers[at].keys)(&cluster.world) {
                    self.reconcile(cluster, at, &key, 0, None);
                    self.judge(cluster);
                }
            }
            if cluster.world.version() == before {
                return Ok(());
            }
        }
        let last = cluster.world.writes(cluster.world.version() - 1, usize::MAX);
        let last: Vec<String> = last.iter().map(|(resource, key)| format!("{resource} {key}")).collect();
        Err(format!("C27 the writing never ends; last {}", last.join(", ")))
    }

    /// With no more faults, what comes of it. A state once found good is not looked into again, if `short`.
    fn settle(&self, from: &Cluster, short: bool) -> Result<Cluster, String> {
        let mut cluster = from.clone();
        let mut trail = vec![from.print];
        let mut waited = 0;
        for _ in 0..PATIENCE {
            self.work_off(&mut cluster)?;
            if let Some(broken) = cluster.broken.take() {
                return Err(broken);
            }
            let print = self.print(&cluster);
            if short && self.good().contains(&print) {
                self.good().extend(trail);
                return Ok(cluster);
            }
            trail.push(print);
            if self.somebody_moves(&mut cluster) {
                continue;
            }
            match (self.desired)(&cluster.world) {
                Ok(()) => {
                    self.good().extend(trail);
                    return Ok(cluster);
                }
                Err(_) if self.tick.0 > 0 && waited < WAITS => {
                    waited += 1;
                    cluster.world.pass(self.tick.0);
                }
                Err(why) => return Err(format!("C26 it ends like this: {why}")),
            }
        }
        Err(format!("C26 it takes too long: {:?}", (self.desired)(&cluster.world)))
    }

    fn good(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.good.lock().expect("no panic while locked")
    }

    /// One step of those who always do their part; whether there was one.
    fn somebody_moves(&self, cluster: &mut Cluster) -> bool {
        for at in (0..self.turns.len()).filter(|at| self.turns[*at].most.is_none()) {
            for key in (self.turns[at].keys)(&cluster.world) {
                let before = cluster.world.version();
                self.take(cluster, at, &key);
                if cluster.world.version() > before {
                    return true;
                }
            }
        }
        false
    }

    /// What tells states apart: the objects, the writes that a view may lack, and who has seen which of them. A
    /// resourceVersion counts by its age, a uid by its place among the others.
    fn print(&self, cluster: &Cluster) -> u64 {
        use std::fmt::Write as _;
        let (world, now) = (&cluster.world, cluster.world.version());
        let mut text = String::with_capacity(16_384);
        for (resource, key, object, version) in world.texts() {
            let age = (now - version).min(self.lag + 1);
            let _ = writeln!(text, "{resource} {key} {age} {object}");
        }
        for version in (now.saturating_sub(self.lag) + 1)..=now {
            if let Some((resource, key, before)) = world.text_before(version) {
                let _ = writeln!(text, "{resource} {key} {before:?}");
            }
        }
        for (place, version) in &cluster.own {
            if now - version < self.lag {
                let _ = writeln!(text, "own {place:?} {}", now - version);
            }
        }
        for (place, version) in &cluster.looked {
            let _ = writeln!(text, "looked {place:?} {}", (now - version).min(8));
        }
        for (place, held) in cluster.held.iter().filter(|(_, held)| !held.is_empty()) {
            let _ = writeln!(text, "held {place:?} {:?}", held.keys());
        }
        for ((controller, key), note) in &world.notes {
            let _ = writeln!(text, "note {controller} {key} {note}");
        }
        let counts = (cluster.cuts, cluster.leaders, cluster.ticks, &cluster.taken, &cluster.broken);
        let _ = writeln!(text, "{} {counts:?}", world.now);
        let mut hasher = DefaultHasher::new();
        ranked(&text).hash(&mut hasher);
        hasher.finish()
    }
}

/// The text with each `uid-NNNN` of the world replaced by its rank among them.
fn ranked(text: &str) -> String {
    const MARK: &str = "uid-";
    const DIGITS: usize = 4;
    let found: Vec<(usize, &str)> = text
        .match_indices(MARK)
        .filter_map(|(at, _)| Some((at, text.get(at..at + MARK.len() + DIGITS)?)))
        .collect();
    let ranks: BTreeSet<&str> = found.iter().map(|(_, uid)| *uid).collect();
    let ranks: BTreeMap<&str, usize> = ranks.into_iter().enumerate().map(|(rank, uid)| (uid, rank)).collect();
    let (mut out, mut from) = (String::with_capacity(text.len()), 0);
    for (at, uid) in found {
        out.push_str(&text[from..at]);
        out.push_str(&format!("uid={}", ranks[uid]));
        from = at + uid.len();
    }
    out.push_str(&text[from..]);
    out
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> =
            self.world.objects().map(|(resource, key, _)| format!("{} {key}", resource.resource)).collect();
        write!(f, "{} writes, {}", self.world.version(), names.join(", "))?;
        self.broken.as_ref().map_or(Ok(()), |broken| write!(f, "; {broken}"))
    }
}

impl PartialEq for Cluster {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl Hash for Cluster {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}

const RULES: &str = "C25 and the scenario's rules hold at every step";
const ENDS: &str = "C26 C27 once faults stop the desired state comes and stays";

type Reached = fn(&Scenario, &Cluster) -> bool;

/// Stateright's properties are functions, not closures.
const REACHED: [Reached; 4] = [
    |scenario, cluster| (scenario.reached[0].1)(&cluster.world),
    |scenario, cluster| (scenario.reached[1].1)(&cluster.world),
    |scenario, cluster| (scenario.reached[2].1)(&cluster.world),
    |scenario, cluster| (scenario.reached[3].1)(&cluster.world),
];

impl Model for Scenario {
    type State = Cluster;
    type Action = Step;

    fn init_states(&self) -> Vec<Cluster> {
        vec![self.cluster()]
    }

    fn actions(&self, cluster: &Cluster, steps: &mut Vec<Step>) {
        // What comes after a broken rule explains nothing.
        if cluster.broken.is_some() {
            return;
        }
        let cuts: &[Option<usize>] =
            if cluster.cuts < self.cuts { &[None, Some(1), Some(2)] } else { &[None] };
        for (at, controller) in self.controllers.iter().enumerate() {
            for key in (controller.keys)(&cluster.world) {
                let mut shown = BTreeSet::new();
                for lag in 0..=self.lag {
                    if !shown.insert(self.seen(cluster, at, &key, lag)) {
                        continue;
                    }
                    let name = controller.reconciler.name();
                    let step = |cut: &Option<usize>| Step::Reconcile {
                        controller: name,
                        at,
                        key: key.clone(),
                        lag,
                        cut: *cut,
                    };
                    steps.extend(cuts.iter().map(step));
                }
            }
        }
        for (at, turn) in self.turns.iter().enumerate() {
            if turn.most.is_none_or(|most| cluster.taken[at] < most) {
                let keys = (turn.keys)(&cluster.world).into_iter();
                steps.extend(keys.map(|key| Step::Turn { name: turn.name, at, key }));
            }
        }
        if cluster.leaders < self.leaders {
            steps.push(Step::Leader);
        }
        if cluster.ticks < self.tick.1 {
            steps.push(Step::Pass(self.tick.0));
        }
    }

    fn next_state(&self, last: &Cluster, step: Step) -> Option<Cluster> {
        let mut cluster = last.clone();
        let before = last.world.version();
        match step {
            Step::Reconcile { at, key, lag, cut, .. } => {
                self.reconcile(&mut cluster, at, &key, lag, cut);
                if cluster.world.version() > before {
                    cluster.cuts += u8::from(cut.is_some());
                }
                self.judge(&mut cluster);
            }
            Step::Turn { at, key, .. } => {
                self.take(&mut cluster, at, &key);
                if cluster.world.version() == before {
                    return None;
                }
                cluster.taken[at] += u8::from(self.turns[at].most.is_some());
            }
            Step::Leader => {
                cluster.leaders += 1;
                cluster.world.notes.clear();
                cluster.looked.clear();
                cluster.held.clear();
                // Its caches begin with a list: whatever the last leader wrote is in them.
                let now = cluster.world.version();
                cluster.own.values_mut().for_each(|version| *version = now);
            }
            Step::Pass(seconds) => {
                cluster.ticks += 1;
                cluster.world.pass(seconds);
                self.judge(&mut cluster);
            }
        }
        cluster.print = self.print(&cluster);
        (cluster != *last).then_some(cluster)
    }

    fn properties(&self) -> Vec<Property<Scenario>> {
        let mut properties = vec![
            Property::always(RULES, |_, cluster: &Cluster| cluster.broken.is_none()),
            Property::always(ENDS, |scenario: &Scenario, cluster: &Cluster| {
                match scenario.settle(cluster, true) {
                    Ok(_) => true,
                    Err(why) => {
                        *scenario.why.lock().expect("no panic while locked") = Some(why);
                        false
                    }
                }
            }),
        ];
        if self.lag > 0 {
            properties.push(Property::sometimes("a view behind the truth led to writes", |scenario, _| {
                scenario.late.load(Ordering::Relaxed)
            }));
        }
        if self.cuts > 0 {
            properties.push(Property::sometimes("a plan was cut short", |scenario, _| {
                scenario.cut.load(Ordering::Relaxed)
            }));
        }
        for ((name, _), condition) in self.reached.iter().zip(REACHED) {
            properties.push(Property::sometimes(name, condition));
        }
        properties
    }
}
