//! Any text of another party as it is shown: one printable line, in which nothing that was taken out stays.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::base::printable::{TEXT_BYTES, is_printable, line, message, sanitize};
use vm_agent::base::redact::{mask, redact, redacted};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let shown = line(&text);
    assert!(shown.chars().all(is_printable));
    assert_eq!(line(&shown), shown, "escaping again changes nothing");
    assert!(message(&text).len() <= 7 * TEXT_BYTES);
    let without = redacted(&text);
    assert!(!without.contains("PRIVATE KEY-----"));
    assert_eq!(redacted(&without), without);
    if let Ok(mut tree) = serde_json::from_slice::<serde_json::Value>(bytes) {
        mask(&mut tree);
        redact(&mut tree);
        sanitize(&mut tree);
        let shown = tree.to_string();
        assert!(shown.chars().all(is_printable));
    }
});
