//! State that was damaged while the agent did not run heals from what is left.

use serde_json::json;

use crate::bed::{Bed, trouble, valid};

fn words(text: &str) -> String {
    text.split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_file_that_is_empty_or_cut_heals_from_the_kept_identity() {
    let mut bed = Bed::new().await;
    bed.run(json!({"identity": {"ttl": "1h"}}));
    bed.until("certified", valid).await;
    let path = bed.path("etc/vm-agent/root-cert.pem");
    let good = std::fs::read_to_string(&path).unwrap();
    for damaged in ["", &good[..good.len() / 2]] {
        assert_eq!(bed.stop().await, 0);
        std::fs::write(&path, damaged).unwrap();
        bed.run(json!({"identity": {"ttl": "1h"}}));
        let restored = bed.until("certified", valid).await;
        assert_eq!(bed.command(&["cert", "rotate"]).status.code(), Some(0), "{}", bed.log());
        let status = bed
            .until("renewed", |now| now["identity"]["serial"] != restored["identity"]["serial"])
            .await;
        assert_eq!(trouble(&status, "identity"), "");
        assert_eq!(words(&std::fs::read_to_string(&path).unwrap()), words(&good));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_a_byte_order_mark_is_named_and_not_sent() {
    let mut bed = Bed::new().await;
    let token = std::fs::read_to_string(bed.state("istio-token")).unwrap();
    std::fs::write(bed.state("istio-token"), format!("\u{feff}{token}")).unwrap();
    bed.run(json!({}));
    let told = |status: &serde_json::Value| trouble(status, "identity").contains("byte-order mark");
    let status = bed.until("reported", told).await;
    assert!(trouble(&status, "identity").contains("istio-token"));
    let seen = bed.mesh.seen().borrow().clone();
    assert_eq!((seen.by_token, seen.refused), (0, 0), "istiod has not heard of it");
    std::fs::write(bed.state("istio-token"), token).unwrap();
    bed.until("certified", valid).await;
}
