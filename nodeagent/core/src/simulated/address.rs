//! Pod addresses of one node: the lowest free one of its range.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

#[derive(Clone, Debug)]
pub struct Addresses {
    range: Ipv4Net,
    taken: BTreeMap<Ipv4Addr, String>,
}

impl Addresses {
    pub fn new(range: Ipv4Net) -> Addresses {
        Addresses { range, taken: BTreeMap::new() }
    }

    /// The pod's address: the one it has, the one it wants if that is free, else the lowest. `None`: the range is used up.
    pub fn take(&mut self, uid: &str, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        if let Some((address, _)) = self.taken.iter().find(|(_, owner)| *owner == uid) {
            return Some(*address);
        }
        let wanted = wanted.filter(|ip| self.range.contains(ip) && !self.taken.contains_key(ip));
        // The first host is the gateway on real nodes.
        let mut free = self.range.hosts().skip(1).filter(|ip| !self.taken.contains_key(ip));
        let address = wanted.or_else(|| free.next())?;
        self.taken.insert(address, uid.to_string());
        Some(address)
    }

    pub fn give_back(&mut self, uid: &str) {
        self.taken.retain(|_, owner| owner != uid);
    }
}
