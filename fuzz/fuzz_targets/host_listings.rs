//! Any text of the host: listings of nft and iptables, sshd's configuration, the kernel's addresses, and the
//! journal of the rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::capture::fuzzed::{check_journal, check_lines, check_listing};

fuzz_target!(|bytes: &[u8]| {
    check_journal(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_listing(text);
        check_lines(text);
    }
});
