//! The name table, made for look-ups.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::proto::names::{HOSTS, LeftOut, NAME};
use crate::proto::nds::{NameInfo, NameTable};

/// Names in lower case without the last dot, and their addresses.
#[derive(Debug, Default)]
pub struct Table {
    names: HashMap<Box<str>, u32>,
    hosts: Vec<Addresses>,
    has_wildcards: bool,
    /// Names beyond [`NAMES`].
    left_out: usize,
}

/// The addresses of one host.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    pub(super) v4: Box<[Ipv4Addr]>,
    pub(super) v6: Box<[Ipv6Addr]>,
}

/// A host that was found.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) addresses: &'a Addresses,
    /// The name that the search domain was taken off, where one was: it is the canonical one.
    pub(super) canonical: Option<String>,
}

impl Table {
    /// Makes a table. `domain` is the workload's, such as `vms.svc.cluster.local`: it decides which
    /// short names of Kubernetes services there are (Istio `pkg/dns/client/dns.go`).
    #[must_use]
    pub fn new(table: &NameTable, domain: &str) -> Self {
        let (namespace, cluster) = domain.split_once('.').unwrap_or(("", domain));
        let mut made = Self::default();
        for (host, info) in &table.table {
            let Ok(index) = u32::try_from(made.hosts.len()) else { break };
            made.hosts.push(addresses(info));
            made.add(host, index);
            if info.registry != "Kubernetes" {
                continue;
            }
            for alias in &info.alt_hosts {
                made.add(alias, index);
            }
            if host.strip_suffix(cluster).is_some_and(|rest| rest.ends_with('.')) {
                let service = cluster.split('.').next().unwrap_or_default();
                made.add(&format!("{}.{}", info.shortname, info.namespace), index);
                made.add(&format!("{}.{}.{service}", info.shortname, info.namespace), index);
                if info.namespace == namespace {
                    made.add(&info.shortname, index);
                }
            }
        }
        made
    }

    /// How many names there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The names that there was no place for.
    pub(super) fn left_out(&self) -> LeftOut {
        LeftOut { names: self.left_out, addresses: 0 }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// A host by a name in lower case without its last dot, as it is or with a search domain.
    pub(super) fn find(&self, name: &str, search: &[String]) -> Option<Found<'_>> {
        let found = |addresses| Found { addresses, canonical: None };
        if let Some(addresses) = self.exact(name) {
            return Some(found(addresses));
        }
        for domain in search {
            let short = name.strip_suffix(domain.as_str()).and_then(|rest| rest.strip_suffix('.'));
            if let Some((short, addresses)) =
                short.and_then(|short| Some((short, self.exact(short)?)))
            {
                return Some(Found { addresses, canonical: Some(short.to_owned()) });
            }
        }
        self.wildcard(name).map(found)
    }

    fn exact(&self, name: &str) -> Option<&Addresses> {
        let index = usize::try_from(*self.names.get(name)?).ok()?;
        self.hosts.get(index)
    }

    fn wildcard(&self, name: &str) -> Option<&Addresses> {
        if !self.has_wildcards {
            return None;
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(addresses) = self.exact(&format!("*.{parent}")) {
                return Some(addresses);
            }
            rest = parent;
        }
        None
    }

    /// The first host that claims a name keeps it: a table never names one twice.
    fn add(&mut self, name: &str, index: u32) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if name.is_empty() || name.len() > NAME || self.names.contains_key(&*name) {
            return;
        }
        if self.names.len() >= NAMES {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.has_wildcards |= name.starts_with("*.");
        self.names.insert(name.into_boxed_str(), index);
    }
}

/// Those that are addresses: a table may also hold ranges, which nobody can connect to.
fn addresses(info: &NameInfo) -> Addresses {
    let all: Vec<IpAddr> = info.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let v4 = all.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
    let v6 = all.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
    Addresses { v4: v4.collect(), v6: v6.collect() }
}

/// Names that can be asked for: a service of Kubernetes has four.
const NAMES: usize = 4 * HOSTS;
