//! What holds for any WorkloadEntry, whoever wrote it. The fuzz target looks for one for which it does not.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::fields::{drifted, without};
use super::machine::Machine;
use super::rival::{ADDRESS, Sign, challenged, is_rivals, sign};
use super::sight::Sight;
use super::tenant::{Tenant, left_at, tenant};

/// An entry as it is, and another one that was written or is wanted.
pub fn check_entry(live: &Value, other: &Value, now: SystemTime) {
    let us = Machine::of("a").with_instance(Some("b".to_owned()));
    for grace in [Duration::ZERO, Duration::from_secs(600), Duration::MAX] {
        if let Tenant::Gone(ago) = tenant(live, now, grace) {
            assert!(ago >= grace);
        }
    }
    _ = (left_at(live), Sight::of(live, Some(&us)), is_rivals(live, &us));
    if let Some(Sign::Challenged(address)) = sign(live, other, "b", &us.field_manager()) {
        assert!(address.chars().count() <= ADDRESS);
    }
    assert!(challenged(live, "b 10.0.0.1").is_object());
    assert_eq!(drifted(live, live), Vec::<String>::new());
    let differs = drifted(live, other);
    let rest = without(other, &differs.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(drifted(live, &rest), Vec::<String>::new(), "what differs is not in it");
}
