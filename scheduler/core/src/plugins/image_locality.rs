//! Prefers nodes that already hold the pod's images, weighed by size and by how widely the image is spread.

use crate::framework::{CycleState, MAX_SCORE, Plugin};
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};

const MEGABYTE: i64 = 1024 * 1024;
/// Below this sum of bytes nothing is won.
const LEAST: i64 = 23 * MEGABYTE;
/// Per container: above this sum of bytes nothing more is won.
const MOST: i64 = 1000 * MEGABYTE;

pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn pre_score(&self, _: &mut CycleState, pod: &PodInfo, _: &Snapshot, _: &[Slot]) -> bool {
        !pod.images.is_empty()
    }

    fn score(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> i64 {
        let all = snapshot.nodes().len().max(1) as i64;
        let sum: i64 = pod
            .images
            .iter()
            .filter_map(|image| {
                let size = snapshot.images[node].get(image)?;
                Some(size.saturating_mul(i64::from(snapshot.image_nodes(image))) / all)
            })
            .fold(0, i64::saturating_add);
        let most = MOST.saturating_mul(pod.container_count.max(1) as i64);
        MAX_SCORE * (sum.clamp(LEAST, most) - LEAST) / (most - LEAST)
    }
}
