//! Anything that an application may say to a probe, and anything that a WorkloadGroup may ask for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::health::{Config, grpc_answer, quoted};

fuzz_target!(|bytes: &[u8]| {
    let words = quoted(bytes);
    assert!(words.chars().count() <= 200 && !words.chars().any(char::is_control));
    if let Err(why) = grpc_answer(bytes) {
        assert!(!why.is_empty());
    }
    if let Ok(serde_json::Value::Object(probe)) = serde_json::from_slice(bytes)
        && let Err(errors) = Config::from_json(&probe, [10, 0, 0, 1].into())
    {
        assert!(!errors.is_empty());
    }
});
