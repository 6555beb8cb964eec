//! How fast a size may follow its recommendation: windows, policies, and the memory they need (C30).

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};
use serde_json::{Value, json};

/// Entries kept of each kind; the oldest go first.
const KEPT: usize = 512;

/// Windows and policies of one autoscaler, defaults filled in.
pub struct Rules {
    up: HPAScalingRules,
    down: HPAScalingRules,
    up_window: SignedDuration,
    down_window: SignedDuration,
}

impl Rules {
    pub fn of(behavior: Option<&HorizontalPodAutoscalerBehavior>, stabilization: SignedDuration) -> Rules {
        let policy =
            |kind: &str, value: i32| HPAScalingPolicy { type_: kind.into(), value, period_seconds: 15 };
        let fill = |given: Option<&HPAScalingRules>, policies: Vec<HPAScalingPolicy>| {
            let mut rules = given.cloned().unwrap_or_default();
            rules.policies = rules.policies.filter(|p| !p.is_empty()).or(Some(policies));
            rules
        };
        let up =
            fill(behavior.and_then(|b| b.scale_up.as_ref()), vec![policy("Pods", 4), policy("Percent", 100)]);
        let down = fill(behavior.and_then(|b| b.scale_down.as_ref()), vec![policy("Percent", 100)]);
        let window = |rules: &HPAScalingRules, default: SignedDuration| {
            rules.stabilization_window_seconds.map_or(default, |s| SignedDuration::from_secs(s.into()))
        };
        let (up_window, down_window) = (window(&up, SignedDuration::ZERO), window(&down, stabilization));
        Rules { up, down, up_window, down_window }
    }
}

/// Recommendations and scalings of the last while: (when in seconds, how many pods).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    recommended: Vec<(i64, i32)>,
    /// Positive for pods added, negative for pods taken.
    scaled: Vec<(i64, i32)>,
}

impl Past {
    pub fn read(note: Option<&Value>) -> Past {
        let list = |name: &str| {
            let entries = note.and_then(|n| n[name].as_array()).into_iter().flatten();
            entries.filter_map(|e| Some((e[0].as_i64()?, e[1].as_i64()? as i32))).collect()
        };
        Past { recommended: list("recommended"), scaled: list("scaled") }
    }

    pub fn write(&self) -> Option<Value> {
        Some(json!({ "recommended": self.recommended, "scaled": self.scaled }))
    }

    pub fn scaled(&mut self, now: Timestamp, from: i32, to: i32) {
        self.scaled.push((now.as_second(), to - from));
        trim(&mut self.scaled);
    }

    /// Notes the proposal, and answers the one that the windows allow.
    pub fn stabilize(&mut self, rules: &Rules, now: Timestamp, current: i32, proposed: i32) -> i32 {
        let within = |at: i64, window: SignedDuration| now.as_second() - at < window.as_secs();
        let recent =
            |window| self.recommended.iter().filter(move |(at, _)| within(*at, window)).map(|(_, n)| *n);
        let lowest = recent(rules.up_window).chain([proposed]).min().unwrap_or(proposed);
        let highest = recent(rules.down_window).chain([proposed]).max().unwrap_or(proposed);
        self.recommended.push((now.as_second(), proposed));
        trim(&mut self.recommended);
        // Between the two the present size is as good as any.
        if current < lowest {
            lowest
        } else if current > highest {
            highest
        } else {
            current
        }
    }

    /// As much of the way to `wanted` as the policies allow now.
    pub fn limit(&self, rules: &Rules, now: Timestamp, current: i32, wanted: i32) -> i32 {
        let up = wanted > current;
        let rules = if up { &rules.up } else { &rules.down };
        if wanted == current || rules.select_policy.as_deref() == Some("Disabled") {
            return current;
        }
        let bounds = rules.policies.iter().flatten().map(|policy| {
            let since = now.as_second() - i64::from(policy.period_seconds);
            let same = |(at, n): &&(i64, i32)| *at > since && (*n > 0) == up;
            let start = current - self.scaled.iter().filter(same).map(|(_, n)| n).sum::<i32>();
            match (policy.type_.as_str(), up) {
                ("Percent", true) => {
                    (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32
                }
                ("Percent", false) => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
                (_, true) => start + policy.value,
                (_, false) => start - policy.value,
            }
        });
        let least_change = rules.select_policy.as_deref() == Some("Min");
        let bound = if up == least_change { bounds.min() } else { bounds.max() };
        let bound = bound.unwrap_or(wanted);
        if up { wanted.min(bound.max(current)) } else { wanted.max(bound.min(current)) }
    }
}

fn trim(list: &mut Vec<(i64, i32)>) {
    let surplus = list.len().saturating_sub(KEPT);
    list.drain(..surplus);
}
