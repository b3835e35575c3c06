//! Any file as a resolv.conf.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vm_agent::dns::parse_resolv_conf;

static DIRECTORY: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|bytes: &[u8]| {
    let path = DIRECTORY.path().join("resolv.conf");
    std::fs::write(&path, bytes).unwrap();
    drop(vm_agent::capture::nameservers(&path));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (servers, search) = parse_resolv_conf(text);
    assert!(servers.len() <= 8 && search.len() <= 32, "they are bounded");
    for domain in &search {
        assert!(!domain.is_empty() && !domain.starts_with('.') && !domain.ends_with('.'));
    }
});
