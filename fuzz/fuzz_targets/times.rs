//! Any text as a time of RFC 3339 or of an HTTP `Date`: what is read is written the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::base::clock::{http_date, parse_http_date, parse_rfc3339, rfc3339, unix_seconds};

fuzz_target!(|text: &str| {
    if let Some(at) = parse_http_date(text) {
        assert_eq!(parse_http_date(&http_date(at)), Some(at));
    }
    if let Some(at) = parse_rfc3339(text) {
        let again = parse_rfc3339(&rfc3339(at)).expect("our own text");
        assert_eq!(unix_seconds(again), unix_seconds(at));
    }
});
