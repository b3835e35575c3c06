//! Any file as a kubeconfig: it gives an access, or the reason why not in one line.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vm_agent::base::printable::is_printable;
use vm_agent::base::trouble::chain;
use vm_agent::kube::from_kubeconfig;

static DIRECTORY: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|bytes: &[u8]| {
    let path = DIRECTORY.path().join("kubeconfig");
    std::fs::write(&path, bytes).unwrap();
    for context in [None, Some("a")] {
        if let Err(error) = from_kubeconfig(&path, context) {
            assert!(chain(&error).chars().all(is_printable), "{error:?}");
        }
    }
});
