//! Pod worker, probes, status, rulesets, pure.
