//! Any packet, by datagram and by stream: what comes back is an answer that can be read, or nothing.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vm_agent::dns::{Reply, Table, Transport, answer_packet};
use vm_agent::proto::nds::{NameInfo, NameTable};

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let info = |ips: &[&str], registry: &str| NameInfo {
        ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
        registry: registry.to_owned(),
        shortname: "a".to_owned(),
        namespace: "vms".to_owned(),
        ..Default::default()
    };
    let table = [
        ("a.vms.svc.cluster.local".to_owned(), info(&["10.0.0.1", "fd00::1"], "Kubernetes")),
        ("*.wild.example".to_owned(), info(&["10.0.0.2"], "External")),
        ("b.example".to_owned(), info(&["10.0.0.3"; 40], "External")),
    ];
    Table::new(&NameTable { table: table.into() }, "vms.svc.cluster.local")
});

fuzz_target!(|packet: &[u8]| {
    let search = ["corp.example".to_owned()];
    for transport in [Transport::Udp, Transport::Tcp] {
        if let Reply::Answer(bytes) = answer_packet(&TABLE, &search, packet, transport) {
            assert!(bytes.len() >= 12 && bytes[..2] == packet[..2], "an answer to this query");
            assert!(bytes[2] & 0x80 != 0, "it is an answer");
            assert!(transport == Transport::Tcp || bytes.len() <= 4096, "it fits");
        }
    }
});
