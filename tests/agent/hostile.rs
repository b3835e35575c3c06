//! Peers that say what a terminal or a reader of logs would obey.

use serde_json::json;
use tonic::Code;
use vm_agent::base::printable::is_printable;
use vm_agent::devmesh::{Fault, Service};

use crate::bed::{Bed, trouble};

const HOSTILE: &str = "no\u{1b}[31m\u{9b}2J\u{202e}\n1999-01-01T00:00:00Z  INFO forged";

#[tokio::test]
async fn words_of_a_hostile_authority_are_shown_escaped_in_status_and_log() {
    let mut bed = Bed::new().await;
    bed.mesh.faults().set(Service::Ca, Fault::Status(Code::PermissionDenied, HOSTILE));
    bed.mesh.faults().set(Service::Ads, Fault::Status(Code::PermissionDenied, HOSTILE));
    bed.run(json!({}));
    bed.until("told", |status| trouble(status, "identity").contains("forged")).await;
    let shown = bed.command(&["status"]).stdout;
    let json = bed.command(&["status", "--json"]).stdout;
    for text in [shown, json, bed.log().into_bytes()] {
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("forged"), "{text}");
        for line in text.lines() {
            assert!(line.chars().all(is_printable), "{line:?}");
            assert!(!line.starts_with("1999-01-01"), "a forged line: {line}");
        }
    }
    assert_eq!(bed.stop().await, 0);
}
