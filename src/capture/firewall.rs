//! Host firewalls that let the application's ports in and drop redirected connections: these reach
//! the input hook with the proxy's inbound port as their destination.

use super::{Config, Interception, nft, tool};

/// A firewall that names no rule for the proxy's inbound port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// Such as `table inet filter, chain input`.
    pub place: String,
    /// The port that has to be allowed.
    pub port: u16,
}

/// Looks for a firewall that drops redirected inbound connections. It only looks for the port's number
/// in a table that drops by default, so that a firewall with other conditions is not judged.
pub async fn blocking(config: &Config) -> Option<Blocking> {
    if config.interception == Interception::Tproxy {
        return None;
    }
    let port = config.proxy_ports.inbound;
    if let Some(nft) = tool::find(&["nft"]) {
        let ruleset = tool::run(&nft, &["list", "ruleset"], "").await.unwrap_or_default();
        if let Some(place) = nft_place(&ruleset, port) {
            return Some(Blocking { place, port });
        }
    }
    let legacy = tool::find(&["iptables-legacy-save"])?;
    let saved = tool::run(&legacy, &["-t", "filter"], "").await.unwrap_or_default();
    let drops = saved.lines().any(|line| line.starts_with(":INPUT DROP"));
    let names = saved.contains(&port.to_string());
    (drops && !names).then(|| Blocking { place: "iptables, chain INPUT".to_owned(), port })
}

/// The first table with a chain at the input hook that drops what no rule accepts, and without the
/// port's number.
pub(super) fn nft_place(ruleset: &str, port: u16) -> Option<String> {
    let port = port.to_string();
    let mut tables = ruleset.split("\ntable ").map(|table| table.trim_start_matches("table "));
    tables.find_map(|table| {
        let (name, body) = table.split_once(" {")?;
        if name == nft::TABLE || body.contains(&port) {
            return None;
        }
        let chain = body.split("\tchain ").skip(1).find(|chain| drops_input(chain))?;
        let chain = chain.split(" {").next().unwrap_or_default();
        Some(format!("table {name}, chain {chain}"))
    })
}

/// By its policy, or by a last rule without conditions.
fn drops_input(chain: &str) -> bool {
    let at_input = chain.lines().find(|line| line.contains("hook input"));
    let Some(hook) = at_input else { return false };
    let mut rules = chain.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "}");
    let last = rules.next_back().unwrap_or_default();
    hook.contains("policy drop") || last.starts_with("drop") || last.starts_with("reject")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: &str = "table inet hostfw {
\tchain output {
\t\ttype filter hook output priority filter; policy drop;
\t}

\tchain input {
\t\ttype filter hook input priority filter; policy drop;
\t\tiif \"lo\" accept
\t\ttcp dport { 22, 9080 } accept
\t}
}
table inet vm_agent {
\tchain nat_prerouting {
\t\ttcp flags syn redirect to :15006
\t}
}
";

    #[test]
    fn a_firewall_that_drops_by_default_has_to_name_the_port() {
        let place = Some("table inet hostfw, chain input".to_owned());
        assert_eq!(nft_place(OTHERS, 15006), place);
        assert_eq!(nft_place(&OTHERS.replace("9080", "15006"), 15006), None);
        assert_eq!(nft_place(&OTHERS.replace("policy drop", "policy accept"), 15006), None);
        let last = OTHERS
            .replace("policy drop", "policy accept")
            .replace("9080 } accept", "9080 } accept\n\t\treject with icmpx admin-prohibited");
        assert_eq!(nft_place(&last, 15006), place);
        assert_eq!(nft_place("", 15006), None);
    }
}
