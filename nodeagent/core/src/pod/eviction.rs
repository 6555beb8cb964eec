//! Node pressure: which conditions hold, and which pod goes first.
//!
//! Memory pressure when less than `memory_floor` bytes are available; disk when less than a share of the file system. Pods
//! over their request go first, then lower priority, then the larger excess; ties by name so the choice is repeatable.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signals {
    pub memory_available: u64,
    pub disk_available: u64,
    pub disk_capacity: u64,
    pub inodes_free: u64,
    pub inodes: u64,
    pub pids: u64,
    pub pids_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thresholds {
    /// Bytes; the default is 100 MiB.
    pub memory_floor: u64,
    /// Percent of the file system; the default is 10.
    pub disk_floor_percent: u64,
    /// Percent of the inodes; the default is 5.
    pub inodes_floor_percent: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { memory_floor: 100 << 20, disk_floor_percent: 10, inodes_floor_percent: 5 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

pub fn pressure(signals: &Signals, thresholds: &Thresholds) -> Pressure {
    let below = |available: u64, capacity: u64, percent: u64| {
        capacity > 0 && u128::from(available) * 100 < u128::from(capacity) * u128::from(percent)
    };
    Pressure {
        memory: signals.memory_available < thresholds.memory_floor,
        disk: below(signals.disk_available, signals.disk_capacity, thresholds.disk_floor_percent)
            || below(signals.inodes_free, signals.inodes, thresholds.inodes_floor_percent),
        pid: below(signals.pids_max.saturating_sub(signals.pids), signals.pids_max, 5),
    }
}

/// A pod as the eviction decision sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub uid: String,
    pub name: String,
    pub priority: i32,
    pub memory_request: u64,
    pub memory_used: u64,
    /// Static or system-critical: never chosen.
    pub critical: bool,
}

/// The pod to evict for memory, if any may be.
pub fn choose(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.iter().filter(|c| !c.critical).min_by(|a, b| {
        let over = |c: &Candidate| c.memory_used > c.memory_request;
        let excess = |c: &Candidate| c.memory_used.saturating_sub(c.memory_request);
        (over(b).cmp(&over(a)))
            .then(a.priority.cmp(&b.priority))
            .then(excess(b).cmp(&excess(a)))
            .then(a.name.cmp(&b.name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, priority: i32, request: u64, used: u64) -> Candidate {
        let (uid, name) = (name.to_string(), name.to_string());
        Candidate { uid, name, priority, memory_request: request, memory_used: used, critical: false }
    }

    #[test]
    fn over_request_then_priority_then_excess() {
        let list = [pod("a", 0, 100, 50), pod("b", 10, 10, 90), pod("c", 10, 10, 95)];
        assert_eq!(choose(&list).unwrap().name, "c");
        let mut all = list.to_vec();
        all[2].critical = true;
        assert_eq!(choose(&all).unwrap().name, "b");
    }

    #[test]
    fn pressure_thresholds() {
        let calm = Signals {
            memory_available: 1 << 30,
            disk_available: 50,
            disk_capacity: 100,
            inodes_free: 50,
            inodes: 100,
            pids: 1,
            pids_max: 100,
        };
        assert_eq!(pressure(&calm, &Thresholds::default()), Pressure::default());
        let tight = Signals { memory_available: 1, disk_available: 9, ..calm };
        let found = pressure(&tight, &Thresholds::default());
        assert!(found.memory && found.disk && !found.pid);
    }
}
