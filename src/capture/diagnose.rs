//! Why a host refuses rules: no right to change them, or a part of the kernel that is missing.

use super::apply::ApplyError;
use super::tool::{self, ToolError};

/// Turns a tool's failure into what the host lacks, where that can be told.
pub(super) async fn explain(error: ToolError, input: &str, nftables: bool) -> ApplyError {
    let ToolError::Failed { said, .. } = &error else { return ApplyError::Failed(error) };
    if ["not permitted", "Permission denied", "you must be root"].iter().any(|w| said.contains(w)) {
        let missing = "no right to change its rules".to_owned();
        let hint = "run it as root (it needs CAP_NET_ADMIN)".to_owned();
        return ApplyError::Host { missing, hint, source: error };
    }
    let module = if nftables { lacking_nft(input).await } else { lacking_iptables(said) };
    match module {
        Some((what, module)) => {
            let missing = format!("its kernel knows no {what}");
            let hint = format!("load the module {module} (modprobe {module})");
            ApplyError::Host { missing, hint, source: error }
        }
        None => ApplyError::Failed(error),
    }
}

/// Tries each feature that the rules use by itself, without changing anything.
async fn lacking_nft(input: &str) -> Option<(&'static str, &'static str)> {
    let nft = tool::find(&["nft"])?;
    for feature in NFT {
        if !feature.word.is_empty() && !input.contains(feature.word) {
            continue;
        }
        let text = format!("table inet vm_agent_check {{ {} }}\n", feature.chain);
        if tool::run(&nft, &["--check", "-f", "-"], &text).await.is_err() {
            return Some((feature.what, feature.module));
        }
    }
    None
}

/// iptables names the match, target or table that it could not use.
pub(super) fn lacking_iptables(said: &str) -> Option<(&'static str, &'static str)> {
    let said = said.to_ascii_lowercase();
    let found = IPTABLES.iter().find(|(word, _, _)| said.contains(word));
    found.map(|(_, what, module)| (*what, *module))
}

struct Feature {
    /// A word of the rules that need it; all do when it is empty.
    word: &'static str,
    chain: &'static str,
    what: &'static str,
    module: &'static str,
}

const NFT: [Feature; 6] = [
    Feature {
        word: "",
        chain: "chain c { type filter hook output priority 0; }",
        what: "nftables for the family inet",
        module: "nf_tables",
    },
    Feature {
        word: "type nat",
        chain: "chain c { type nat hook output priority -95; }",
        what: "nat chains",
        module: "nft_chain_nat",
    },
    Feature {
        word: "redirect",
        chain: "chain c { type nat hook output priority -95; meta l4proto tcp redirect to :1; }",
        what: "redirection",
        module: "nft_redir",
    },
    Feature {
        word: "fib daddr",
        chain: "chain c { type filter hook prerouting priority 0; fib daddr type local return; }",
        what: "look-up of local addresses",
        module: "nft_fib_inet",
    },
    Feature {
        word: "ct ",
        chain: "chain c { type filter hook output priority raw; ct zone set 1; }",
        what: "connection tracking zones",
        module: "nft_ct",
    },
    Feature {
        word: "tproxy",
        chain: "chain c { type filter hook prerouting priority mangle; \
                meta l4proto tcp tproxy ip to :1; }",
        what: "transparent proxying",
        module: "nft_tproxy",
    },
];

const IPTABLES: [(&str, &str, &str); 9] = [
    ("table `nat'", "table nat", "iptable_nat"),
    ("table `raw'", "table raw", "iptable_raw"),
    ("table `mangle'", "table mangle", "iptable_mangle"),
    ("owner", "match by owner", "xt_owner"),
    ("addrtype", "match by type of address", "xt_addrtype"),
    ("multiport", "match of several ports", "xt_multiport"),
    ("redirect", "redirection", "xt_REDIRECT"),
    ("tproxy", "transparent proxying", "xt_TPROXY"),
    ("`ct'", "connection tracking zones", "xt_CT"),
];
