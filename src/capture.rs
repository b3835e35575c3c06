//! The host's redirect rules.
