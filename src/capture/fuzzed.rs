//! What holds for any text that the host's tools and files show. The fuzz target looks for one for which it does
//! not.

use super::firewall::nft_place;
use super::host::{link_local_of, ssh_port};
use super::iptables::{chains, is_bare, own_lines, removal, replacement};
use super::journal::Journal;
use super::rule::Family;

/// A listing of `iptables-save` or nft: only what is ours is removed, and nothing is made of it that is not there.
pub fn check_listing(text: &str) {
    let removed = removal(text);
    for line in removed.lines() {
        let of_ours = ["-F VM_AGENT_", "-X VM_AGENT_"].iter().any(|start| line.starts_with(start));
        let to_ours = line.starts_with("-D ") && line.contains("VM_AGENT_");
        let is_table = line.starts_with('*') || line == "COMMIT";
        assert!(of_ours || to_ours || is_table, "{line:?}");
    }
    for family in [Family::V4, Family::V6] {
        assert_eq!(replacement(&[], family, text), removed);
    }
    assert_eq!(removal(&own_lines(text).join("\n")).is_empty(), removed.is_empty());
    for chain in chains(text) {
        assert!(chain.split(' ').all(|word| text.contains(word)));
        _ = is_bare(text, &chain);
    }
    for port in [0, 15006] {
        if let Some(place) = nft_place(text, port) {
            assert!(place.starts_with("table ") && place.contains(", chain "));
        }
    }
}

/// Lines of other files: sshd's configuration and the kernel's list of IPv6 addresses.
pub fn check_lines(text: &str) {
    for line in text.lines() {
        assert!(ssh_port(line).is_none_or(|ports| !ports.is_empty()));
        assert!(link_local_of(line).is_none_or(|address| address.port() == 0));
    }
}

/// A journal is written as it was read.
pub fn check_journal(bytes: &[u8]) {
    if let Ok(journal) = serde_json::from_slice::<Journal>(bytes) {
        let again = serde_json::to_vec(&journal).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Journal>(&again).ok(), Some(journal));
    }
}
