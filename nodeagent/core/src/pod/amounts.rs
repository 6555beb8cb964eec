//! Resource quantities as integers: milli-units for CPU, bytes for memory.
//!
//! Rounding is always up, as the API's quantities do: `1n` of CPU is one milli-CPU. Unreadable text is `None`, never a guess;
//! the API server has validated what reaches a node, so `None` here means a static pod with a typing mistake.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const NANO: i128 = 1_000_000_000;

/// The value in thousandths, rounded up, saturating at `i64::MAX`.
pub fn milli(text: &str) -> Option<i64> {
    Some(clamp(ceil_div(nano(text)?, 1_000_000)))
}

/// The value in whole units (bytes, pods), rounded up, saturating at `i64::MAX`.
pub fn whole(text: &str) -> Option<i64> {
    Some(clamp(ceil_div(nano(text)?, NANO)))
}

fn clamp(value: i128) -> i64 {
    value.clamp(i64::MIN as i128, i64::MAX as i128) as i64
}

fn ceil_div(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

fn nano(text: &str) -> Option<i128> {
    let text = text.trim();
    let digits_end = text
        .char_indices()
        .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && (*c == '-' || *c == '+'))))
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(digits_end);
    let scale = scale(suffix)?;
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    if integer.is_empty() && fraction.is_empty() || integer.len() > 25 || fraction.contains('.') {
        return None;
    }
    let mut value: i128 = if integer.is_empty() { 0 } else { integer.parse().ok()? };
    value = value.saturating_mul(scale.0) / scale.1;
    if !fraction.is_empty() {
        let kept = &fraction[..fraction.len().min(12)];
        let part: i128 = kept.parse().ok()?;
        let unit = 10i128.pow(kept.len() as u32);
        value = value.saturating_add(ceil_div(part.saturating_mul(scale.0), unit.saturating_mul(scale.1)));
    }
    Some(if negative { -value } else { value })
}

/// The factor to nano-units as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let power = |exponent: u32| Some((NANO * 1024i128.pow(exponent), 1));
    match suffix {
        "" => Some((NANO, 1)),
        "n" => Some((1, 1)),
        "u" => Some((1_000, 1)),
        "m" => Some((1_000_000, 1)),
        "k" => Some((NANO * 1_000, 1)),
        "M" => Some((NANO * 1_000_000, 1)),
        "G" => Some((NANO * 1_000_000_000, 1)),
        "T" => Some((NANO * 1_000_000_000_000, 1)),
        "P" => Some((NANO * 1_000_000_000_000_000, 1)),
        "E" => Some((NANO * 1_000_000_000_000_000_000, 1)),
        "Ki" => power(1),
        "Mi" => power(2),
        "Gi" => power(3),
        "Ti" => power(4),
        "Pi" => power(5),
        "Ei" => power(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            match exponent {
                0..=18 => Some((NANO * 10i128.pow(exponent as u32), 1)),
                -18..=-1 => Some((NANO, 10i128.pow(exponent.unsigned_abs()))),
                _ => None,
            }
        }
    }
}

/// What a resource map asks for: CPU in milli-CPUs, memory in bytes; `None` where it is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    pub cpu_milli: Option<i64>,
    pub memory_bytes: Option<i64>,
    pub ephemeral_bytes: Option<i64>,
}

impl Amounts {
    pub fn of(map: Option<&BTreeMap<String, Quantity>>) -> Amounts {
        let get = |key: &str| map.and_then(|m| m.get(key)).map(|q| q.0.as_str());
        Amounts {
            cpu_milli: get("cpu").and_then(milli),
            memory_bytes: get("memory").and_then(whole),
            ephemeral_bytes: get("ephemeral-storage").and_then(whole),
        }
    }
}

/// A container's requests; a limit without a request is the request, as the API defaults it.
pub fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    let asked = Amounts::of(resources.and_then(|r| r.requests.as_ref()));
    let limit = limits(resources);
    Amounts {
        cpu_milli: asked.cpu_milli.or(limit.cpu_milli),
        memory_bytes: asked.memory_bytes.or(limit.memory_bytes),
        ephemeral_bytes: asked.ephemeral_bytes.or(limit.ephemeral_bytes),
    }
}

/// A container's limits.
pub fn limits(resources: Option<&ResourceRequirements>) -> Amounts {
    Amounts::of(resources.and_then(|r| r.limits.as_ref()))
}

/// A pod's effective requests: the larger of the containers' sum (with sidecars) and the widest init step.
pub fn pod_requests(init: &[Container], main: &[Container]) -> (i64, i64) {
    pod_total(init, main, |c| {
        let r = requests(c.resources.as_ref());
        (r.cpu_milli.unwrap_or(0), r.memory_bytes.unwrap_or(0))
    })
}

/// The pod-wide sum by the API's rule for init containers and sidecars.
pub fn pod_total(
    init: &[Container],
    main: &[Container],
    of: impl Fn(&Container) -> (i64, i64),
) -> (i64, i64) {
    let add = |a: (i64, i64), b: (i64, i64)| (a.0.saturating_add(b.0), a.1.saturating_add(b.1));
    let mut sidecars = (0, 0);
    let mut widest = (0, 0);
    for container in init {
        let step = if super::naming::is_sidecar(container) {
            sidecars = add(sidecars, of(container));
            sidecars
        } else {
            add(sidecars, of(container))
        };
        widest = (i64::max(widest.0, step.0), i64::max(widest.1, step.1));
    }
    let sum = main.iter().fold(sidecars, |acc, c| add(acc, of(c)));
    (sum.0.max(widest.0), sum.1.max(widest.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_apis_suffixes_and_rounds_up() {
        assert_eq!(milli("100m"), Some(100));
        assert_eq!(milli("1n"), Some(1));
        assert_eq!(milli("1.5"), Some(1500));
        assert_eq!(milli("0.5"), Some(500));
        assert_eq!(whole("64Mi"), Some(64 << 20));
        assert_eq!(whole("1.5Gi"), Some(3 << 29));
        assert_eq!(whole("1e3"), Some(1000));
        assert_eq!(whole("1500m"), Some(2));
        assert_eq!(whole("1E"), Some(1_000_000_000_000_000_000));
        assert_eq!(whole("999999999999999999999E"), Some(i64::MAX));
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in ["", "x", "1x", ".", "1.2.3", "1ee3", "--1"] {
            assert_eq!(whole(text), None, "{text}");
        }
    }
}
