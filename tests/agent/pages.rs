//! The status server's pages.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::Bed;

/// Head and body of an answer.
async fn get(bed: &Bed, path: &str, host: &str) -> (String, String) {
    let config = std::fs::read_to_string(bed.path("etc/vm-agent/config.yaml")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let port = u16::try_from(config["status"]["port"].as_u64().unwrap()).unwrap();
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn the_web_page_and_the_json_are_what_the_command_shows() {
    let mut bed = Bed::new().await;
    bed.run(json!({}));
    let shown = bed.until("certified", |status| status["identity"]["valid"] == true).await;
    let (head, body) = get(&bed, "/v1/status", "localhost").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let told: Value = serde_json::from_str(&body).unwrap();
    for at in ["/schema", "/workload", "/identity/serial", "/facts"] {
        assert_eq!(told.pointer(at), shown.pointer(at), "{at}");
    }
    let (head, body) = get(&bed, "/", "127.0.0.1").await;
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
        let (head, body) = get(&bed, path, "rebound.example").await;
        assert!(head.starts_with("HTTP/1.1 403") && !body.contains("spiffe"), "{head}");
    }
    assert_eq!(bed.stop().await, 0);
}
