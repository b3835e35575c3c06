//! Any bytes as what one process of ours leaves or sends for another: the note about Envoy, an order to the
//! launcher, an order for a socket.
#![no_main]

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vm_agent::capture::SocketOrder;
use vm_agent::envoy::{Allowed, living, serve_order};

static DIRECTORY: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(DIRECTORY.path().join("envoy.pid"), bytes).unwrap();
    if let Some(pid) = living(DIRECTORY.path()) {
        assert!(pid > 0 && std::path::Path::new("/proc").join(pid.to_string()).exists());
    }
    drop(serde_json::from_slice::<SocketOrder>(bytes));
    // Nobody is allowed, so that nothing is started.
    let allowed = Allowed { users: Vec::new(), directory: DIRECTORY.path().into() };
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = File::open("/dev/null").unwrap().into();
    let said = serve_order(ours, bytes, Some(output), &allowed);
    let answer = std::io::read_to_string(theirs).unwrap();
    assert_eq!(said.is_ok(), answer.starts_with("the launcher refuses: "), "{answer:?}");
});
