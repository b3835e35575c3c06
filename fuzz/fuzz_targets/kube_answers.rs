//! Any bytes of a Kubernetes API server: the lines of a watch, a `Status`, WorkloadEntries of anybody.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use vm_agent::kube::Version;
use vm_agent::kube::fuzzed::{check_refusal, check_watch};
use vm_agent::registry::fuzzed::check_entry;

fuzz_target!(|bytes: &[u8]| {
    let mut objects = check_watch(bytes);
    let lines = bytes.split(|byte| *byte == b'\n').take(2);
    objects.extend(lines.filter_map(|line| serde_json::from_slice(line).ok()));
    for object in &objects {
        if let Some(version) = Version::of(object) {
            assert_eq!(object["metadata"]["uid"], version.uid);
        }
        for code in [401, 403, 404, 409, 410, 429, 500] {
            check_refusal(object, code);
        }
    }
    if let Some(first) = objects.first() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        check_entry(first, objects.last().unwrap_or(&Value::Null), now);
    }
});
