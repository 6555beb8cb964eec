//! Pod network and cluster DNS.
