//! Any bytes of Envoy or istiod: as a discovery message, and as a body with messages.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vm_agent::identity::SpiffeId;
use vm_agent::workload::Workload;
use vm_agent::xds::fuzzed::{check_frames, check_message};

static WORKLOAD: LazyLock<Workload> = LazyLock::new(|| Workload {
    name: "vm1".to_owned(),
    id: SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap(),
    group: None,
    address: "10.0.0.2".parse().unwrap(),
    instance_ips: vec![[10, 0, 0, 2].into()],
    labels: [("app".to_owned(), "a".to_owned())].into(),
    ports: Default::default(),
    network: "n".to_owned(),
    locality: Some("eu/b".parse().unwrap()),
    weight: None,
});

fuzz_target!(|bytes: &[u8]| {
    check_message(bytes, &WORKLOAD);
    if let Some((piece, body)) = bytes.split_first() {
        check_frames(body, *piece);
    }
});
