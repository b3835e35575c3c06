//! Keys that are not in use any more are not in the agent's memory either.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use vm_agent::proto::discovery::DiscoveryRequest;
use vm_agent::proto::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;

use crate::bed::{Bed, channel, valid};

/// A line of base64 in the middle of a private key, as it was pushed.
fn part_of_key(pushed: &[u8]) -> String {
    let text = String::from_utf8_lossy(pushed);
    let (_, key) = text.split_once("PRIVATE KEY-----\n").unwrap();
    key.lines().nth(1).unwrap().to_owned()
}

/// Which of the texts are in the memory of a process.
fn found_in(pid: u64, texts: &[String]) -> Vec<bool> {
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = vec![false; texts.len()];
    for map in maps.lines().filter(|map| map.contains(" rw-p ")) {
        let (start, end) = map.split(' ').next().unwrap().split_once('-').unwrap();
        let (start, end) = (parse(start), parse(end));
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // Some mappings of the kernel cannot be read.
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        for (found, text) in found.iter_mut().zip(texts) {
            let mut candidates = memchr_all(&bytes, text.as_bytes()[0]);
            *found |= candidates.any(|at| bytes[at..].starts_with(text.as_bytes()));
        }
    }
    found
}

fn parse(hex: &str) -> u64 {
    u64::from_str_radix(hex, 16).unwrap()
}

fn memchr_all(bytes: &[u8], byte: u8) -> impl Iterator<Item = usize> + '_ {
    bytes.iter().enumerate().filter(move |(_, found)| **found == byte).map(|(at, _)| at)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_some_renewals_old_keys_are_not_in_memory() {
    let mut bed = Bed::new().await;
    bed.run(json!({"identity": {"ttl": "1h"}}));
    let pid = bed.until("certified", valid).await["pid"].as_u64().unwrap();
    let (requests, stream) = tokio::sync::mpsc::channel(8);
    let channel = channel(&bed.path("run/vm-agent/sds.sock")).await;
    let mut client = SecretDiscoveryServiceClient::new(channel);
    let answers = client.stream_secrets(ReceiverStream::new(stream)).await.unwrap();
    let mut answers = answers.into_inner();
    let request =
        DiscoveryRequest { resource_names: vec!["default".to_owned()], ..Default::default() };
    requests.send(request).await.unwrap();
    let mut keys = Vec::new();
    for rotation in 0..RENEWALS {
        if rotation > 0 {
            assert_eq!(bed.command(&["cert", "rotate"]).status.code(), Some(0));
        }
        let answer = timeout(Duration::from_secs(30), answers.next()).await;
        let answer = answer.expect("a push").unwrap().unwrap();
        keys.push(part_of_key(&answer.resources[0].value));
    }
    let found = found_in(pid, &keys);
    assert!(found[RENEWALS - 1], "the key in use is found, so others would be");
    // Buffers of the last push may still be in use.
    assert_eq!(found[..RENEWALS - 2], [false; RENEWALS - 2], "{found:?}");
}

const RENEWALS: usize = 8;
