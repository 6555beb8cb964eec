//! Service proxy: applies rulesets to nftables.
