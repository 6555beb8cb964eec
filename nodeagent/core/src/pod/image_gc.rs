//! Which images to remove when the image file system fills: unused ones, longest unused first, until below the low mark.

use jiff::{SignedDuration, Timestamp};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    pub id: String,
    pub bytes: u64,
    pub last_used: Timestamp,
    pub in_use: bool,
    pub pinned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    /// Percent used that starts a collection.
    pub high: u64,
    /// Percent used to come down to.
    pub low: u64,
    pub least_age: SignedDuration,
}

impl Default for Marks {
    fn default() -> Self {
        Marks { high: 85, low: 80, least_age: SignedDuration::from_mins(2) }
    }
}

/// Ids to remove, in order. Empty below the high mark.
pub fn choose(images: &[Image], used: u64, capacity: u64, marks: &Marks, now: Timestamp) -> Vec<String> {
    let percent = |share: u64| (u128::from(capacity) * u128::from(share) / 100) as u64;
    if capacity == 0 || used < percent(marks.high) {
        return Vec::new();
    }
    let mut to_free = used.saturating_sub(percent(marks.low));
    let mut free: Vec<&Image> = images
        .iter()
        .filter(|i| !i.in_use && !i.pinned && now.duration_since(i.last_used) >= marks.least_age)
        .collect();
    free.sort_by(|a, b| (a.last_used, &a.id).cmp(&(b.last_used, &b.id)));
    let mut out = Vec::new();
    for image in free {
        if to_free == 0 {
            break;
        }
        to_free = to_free.saturating_sub(image.bytes.max(1));
        out.push(image.id.clone());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_unused_first_down_to_the_low_mark() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let image = |id: &str, used: i64, in_use| Image {
            id: id.into(),
            bytes: 4,
            last_used: at(used),
            in_use,
            pinned: false,
        };
        let images =
            [image("new", 950, false), image("b", 20, false), image("a", 10, false), image("used", 1, true)];
        let marks = Marks::default();
        assert!(choose(&images, 84, 100, &marks, at(1000)).is_empty());
        assert_eq!(choose(&images, 86, 100, &marks, at(1000)), ["a", "b"]);
        assert_eq!(choose(&images, 99, 100, &marks, at(131)), ["a"]);
    }
}
