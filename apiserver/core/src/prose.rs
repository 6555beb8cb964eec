//! What the published API says about its types and fields: collected at build time, see `build.rs`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

const TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/prose.txt"));

static PROSE: LazyLock<BTreeMap<&'static str, &'static str>> =
    LazyLock::new(|| TEXT.lines().filter_map(|line| line.split_once('\t')).collect());

/// What is said about a type (`io.k8s.api.core.v1.Pod`) or a field of it (`….Pod.spec`); empty when nothing is.
pub fn about(name: &str) -> Cow<'static, str> {
    match PROSE.get(name) {
        Some(text) if text.contains("\\n") => text.replace("\\n", "\n").into(),
        Some(text) => (*text).into(),
        None => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_their_published_names_and_whole_texts() {
        assert!(about("io.k8s.api.core.v1.PodStatus.podIP").contains("IP"));
        assert!(
            about("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta.namespace")
                .contains("\n\nMust be a DNS_LABEL.")
        );
        assert_eq!(about("io.k8s.api.core.v1.Nothing"), "");
    }
}
