//! The status server's pages.

use serde_json::{Value, json};

use crate::bed::{Bed, valid};

#[tokio::test]
async fn the_web_page_and_the_json_are_what_the_command_shows() {
    let mut bed = Bed::new().await;
    bed.run(json!({}));
    let shown = bed.until("certified", valid).await;
    let (head, body) = bed.page("/v1/status", "localhost").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let told: Value = serde_json::from_str(&body).unwrap();
    for at in ["/schema", "/workload", "/identity/serial", "/facts"] {
        assert_eq!(told.pointer(at), shown.pointer(at), "{at}");
    }
    let (head, body) = bed.page("/", "127.0.0.1").await;
    assert!(head.starts_with("HTTP/1.1 200") && body.starts_with("<!doctype html>"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert_eq!(head.matches("content-type: text/html").count(), 1, "{head}");
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn a_web_site_that_leads_its_name_here_reads_nothing() {
    let mut bed = Bed::new().await;
    bed.run(json!({}));
    bed.until("running", |_| true).await;
    for path in ["/", "/v1/status"] {
        let (head, body) = bed.page(path, "rebound.example").await;
        assert!(head.starts_with("HTTP/1.1 403") && !body.contains("spiffe"), "{head}");
    }
    assert_eq!(bed.stop().await, 0);
}
