//! What was done to the host, written down before it is done. Any later process can undo it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Config;
use super::rule::Family;
use crate::base::fsio::{self, FileError};

/// The journal's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    /// The boot that it speaks of: the kernel forgets rules when it restarts.
    pub(super) boot: String,
    /// What undoes it, in the order of doing.
    pub(super) undo: Vec<Undo>,
    /// What the host showed when all was done; `None` while it is being done.
    pub(super) shown: Option<String>,
    /// The rules that it was done for; missing in a journal of an older agent.
    #[serde(default)]
    pub(super) rules: Option<String>,
    /// The same as data, for the next boot; missing in a journal of an older agent.
    #[serde(default)]
    pub(super) config: Option<Config>,
    /// Whether they are put back at the next boot before the network is up.
    #[serde(default)]
    pub(super) restore: bool,
}

/// How one change is undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Undo {
    /// Delete our table.
    NftTable,
    /// Remove our chains, and those of the kernel's that were not there before.
    Iptables {
        /// `legacy`, `nft` or empty: which iptables made them.
        flavour: String,
        /// Whether it is the one for IPv6.
        ipv6: bool,
        /// The tables and chains that were there before.
        chains: Vec<String>,
    },
    /// Take an address off loopback.
    Address {
        /// The address with its prefix.
        address: String,
    },
    /// Remove the routing rule and table of marked packets.
    Route {
        /// Whether it is the one for IPv6.
        ipv6: bool,
    },
}

impl Journal {
    /// Reads a journal. One of an earlier boot has nothing to undo; an unreadable one is as
    /// good as none, as what we own can also be found by its name.
    pub(super) fn read(path: &Path) -> Option<Self> {
        Self::last(path).filter(|journal| journal.boot == boot())
    }

    /// Reads a journal, whichever boot it speaks of.
    pub(super) fn last(path: &Path) -> Option<Self> {
        let text = fsio::read_text(path, BYTES).ok()?;
        match serde_json::from_str::<Self>(&text) {
            Ok(journal) => Some(journal),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "The journal is unreadable.");
                None
            }
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        if let Some(directory) = path.parent() {
            fsio::make_directory(directory, 0o700)?;
        }
        fsio::replace(path, &text, 0o600)
    }
}

/// The number of this boot, and of the network namespace, with which the kernel forgets rules too: a
/// container that starts again is still in the boot of its host.
pub(super) fn boot() -> String {
    let boot = fsio::read_text(Path::new("/proc/sys/kernel/random/boot_id"), 64);
    let namespace = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    format!("{} {}", boot.unwrap_or_default().trim(), namespace.display())
}

/// Whether it is the one for IPv6.
pub(super) fn is_ipv6(family: Family) -> bool {
    family == Family::V6
}

/// Far more than the rules with most ports and ranges.
const BYTES: u64 = 4 * 1024 * 1024;
