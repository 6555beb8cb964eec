//! kubectl's verbs for machines without kubectl.
