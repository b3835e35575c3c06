//! Istio's name table within limits. A table comes from the network, and everything of it is kept in memory and
//! on disk: what is beyond a limit is left out and counted, and the rest is used.

use std::collections::BTreeMap;
use std::fmt;

use super::fields::{Fields, Malformed, text};
use super::nds::{NameInfo, NameTable};

/// A name table within the limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    /// What is within them.
    pub table: NameTable,
    /// What is not.
    pub left_out: LeftOut,
}

/// How much of a name table is not used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Names: those that are too long, and those after the last one in alphabetical order that is kept.
    pub names: usize,
    /// Addresses of names that are kept.
    pub addresses: usize,
}

impl LeftOut {
    /// Whether the table is whole.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            names: self.names.saturating_add(other.names),
            addresses: self.addresses.saturating_add(other.addresses),
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} names and {} addresses", self.names, self.addresses)
    }
}

impl Names {
    /// Reads a `NameTable` (Istio `pkg/dns/proto/nds.proto`). Which names are kept does not depend on the order in
    /// which they come: istiod's is another one each time.
    ///
    /// # Errors
    /// When it is no `NameTable`.
    pub fn decode(message: &[u8]) -> Result<Self, Malformed> {
        Self::within(&LIMITS, message)
    }

    fn within(limits: &Limits, message: &[u8]) -> Result<Self, Malformed> {
        let mut kept = Kept::new(limits);
        for field in Fields(message) {
            let field = field?;
            if field.number == TABLE {
                kept.take(field.payload.ok_or(Malformed)?)?;
            }
        }
        Ok(kept.finish())
    }
}

/// The hosts that are kept so far.
struct Kept<'a> {
    limits: &'a Limits,
    hosts: BTreeMap<String, Host>,
    /// The sum of what each takes.
    bytes: usize,
    /// The first name in alphabetical order that had to go: none after it is kept.
    end: Option<String>,
    left_out: usize,
}

/// One host.
#[derive(Default)]
struct Host {
    info: NameInfo,
    left_out: LeftOut,
    bytes: usize,
}

impl<'a> Kept<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { limits, hosts: BTreeMap::new(), bytes: 0, end: None, left_out: 0 }
    }

    /// One entry of the map: its key and its value.
    fn take(&mut self, entry: &[u8]) -> Result<(), Malformed> {
        let (mut name, mut value) = ("", &[][..]);
        for field in Fields(entry) {
            let field = field?;
            match field.number {
                1 => name = text(field.payload)?,
                2 => value = field.payload.ok_or(Malformed)?,
                _ => {}
            }
        }
        let is_beyond = self.end.as_deref().is_some_and(|end| name >= end);
        if is_beyond || !is_name(name) {
            self.left_out = self.left_out.saturating_add(1);
            return Ok(());
        }
        let host = Host::read(self.limits, name, value)?;
        self.bytes = self.bytes.saturating_add(host.bytes);
        if let Some(before) = self.hosts.insert(name.to_owned(), host) {
            self.bytes = self.bytes.saturating_sub(before.bytes);
        }
        while self.hosts.len() > self.limits.hosts || self.bytes > self.limits.bytes {
            let Some((name, host)) = self.hosts.pop_last() else { break };
            self.bytes = self.bytes.saturating_sub(host.bytes);
            self.left_out = self.left_out.saturating_add(1);
            self.end = Some(name);
        }
        Ok(())
    }

    fn finish(self) -> Names {
        let mut left_out = LeftOut { names: self.left_out, addresses: 0 };
        let mut table = NameTable::default();
        for (name, host) in self.hosts {
            left_out = left_out.and(host.left_out);
            table.table.insert(name, host.info);
        }
        Names { table, left_out }
    }
}

impl Host {
    fn read(limits: &Limits, name: &str, value: &[u8]) -> Result<Self, Malformed> {
        let mut host = Self::default();
        let Self { info, left_out, .. } = &mut host;
        for field in Fields(value) {
            let field = field?;
            match field.number {
                1 => match text(field.payload)? {
                    ip if ip.len() <= ADDRESS && info.ips.len() < limits.addresses => {
                        info.ips.push(ip.to_owned());
                    }
                    _ => left_out.addresses = left_out.addresses.saturating_add(1),
                },
                2 => short(&mut info.registry, text(field.payload)?, left_out),
                3 => short(&mut info.shortname, text(field.payload)?, left_out),
                4 => short(&mut info.namespace, text(field.payload)?, left_out),
                5 => match text(field.payload)? {
                    alias if is_name(alias) && info.alt_hosts.len() < limits.aliases => {
                        info.alt_hosts.push(alias.to_owned());
                    }
                    _ => left_out.names = left_out.names.saturating_add(1),
                },
                _ => {}
            }
        }
        let lists = info.ips.iter().chain(&info.alt_hosts);
        let texts = lists.chain([&info.registry, &info.shortname, &info.namespace]);
        let texts = texts.map(|text| text.len().saturating_add(TEXT));
        let texts = texts.fold(0_usize, usize::saturating_add);
        host.bytes = HOST.saturating_add(name.len()).saturating_add(texts);
        Ok(host)
    }
}

/// A part of a name that is longer than any name makes no name.
fn short(part: &mut String, text: &str, left_out: &mut LeftOut) {
    if text.len() <= NAME {
        text.clone_into(part);
    } else {
        left_out.names = left_out.names.saturating_add(1);
    }
}

/// Whether it can be asked for: it has at most as many characters as DNS allows, the dot at the end apart.
fn is_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    !name.is_empty() && name.len() <= NAME
}

struct Limits {
    hosts: usize,
    addresses: usize,
    aliases: usize,
    bytes: usize,
}

/// Far above any mesh that was seen, and within the memory that the agent's unit has, twice over: a new table is made while
/// the one before is in use.
const LIMITS: Limits =
    Limits { hosts: HOSTS, addresses: ADDRESSES, aliases: ALIASES, bytes: BYTES };
/// Hosts of a table.
pub const HOSTS: usize = 200_000;
/// Addresses of a host. An answer by UDP has some hundred, one by TCP some four thousand.
pub const ADDRESSES: usize = 1024;
/// Further names that istiod gives a host.
pub const ALIASES: usize = 64;
/// What a table may take in memory; encoded, it takes less.
pub const BYTES: usize = 128 << 20;
/// The longest name (RFC 1035 section 2.3.4).
pub const NAME: usize = 253;
/// The longest text of an address or a range.
const ADDRESS: usize = 64;
/// What a host takes in memory beside its texts, and a text beside its bytes, the allocator's part included.
const HOST: usize = 256;
const TEXT: usize = 32;
/// The number of the one field.
const TABLE: u64 = 1;

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn info(ips: usize) -> NameInfo {
        let ips = (0..ips).map(|n| format!("10.0.{}.{}", n >> 8, n & 255)).collect();
        NameInfo { ips, registry: "External".to_owned(), ..NameInfo::default() }
    }

    /// The messages of hosts in this order.
    fn message<'a>(hosts: impl Iterator<Item = (&'a str, NameInfo)>) -> Vec<u8> {
        let table =
            |(name, info): (&str, NameInfo)| NameTable { table: [(name.to_owned(), info)].into() };
        hosts.flat_map(|host| table(host).encode_to_vec()).collect()
    }

    #[test]
    fn a_table_within_the_limits_is_as_it_was_sent() {
        let mut one = info(3);
        one.alt_hosts = vec!["alias.example".to_owned()];
        (one.shortname, one.namespace) = ("a".to_owned(), "b".to_owned());
        let table =
            NameTable { table: [("a.example".to_owned(), one), ("b".to_owned(), info(0))].into() };
        let names = Names::decode(&table.encode_to_vec()).unwrap();
        assert_eq!((names.table, names.left_out), (table, LeftOut::default()));
        assert!(Names::decode(b"\xff").is_err() && Names::decode(b"\x0a\x03\x0a\x01\xff").is_err());
    }

    #[test]
    fn a_hundred_thousand_names_with_long_names_and_several_addresses_are_kept() {
        let name = |n: usize| format!("{n:06}.{}.example", "service-with-a-long-name.".repeat(3));
        let hosts: Vec<_> = (0..100_000).map(|n| (name(n), info(4))).collect();
        let table = NameTable { table: hosts.into_iter().collect() };
        let names = Names::decode(&table.encode_to_vec()).unwrap();
        assert_eq!((names.table.table.len(), names.left_out), (100_000, LeftOut::default()));
    }

    #[test]
    fn which_hosts_are_kept_does_not_depend_on_their_order() {
        let all = ["a", "b", "c", "d", "e", "f"];
        // "c" is large: it is the first that is beyond the bytes.
        let host = |name: &&'static str| (*name, info(if *name == "c" { 64 } else { 0 }));
        let two = Host::read(&LIMITS, "a", &info(0).encode_to_vec()).unwrap().bytes * 2;
        for (hosts, bytes, kept) in [(3, usize::MAX, 3), (9, two + 500, 2), (9, 0, 0), (0, 9999, 0)]
        {
            let limits = Limits { hosts, bytes, ..LIMITS };
            let mut orders: Vec<Vec<_>> = vec![all.to_vec(), all.iter().rev().copied().collect()];
            orders.push(vec!["b", "c", "d", "a", "f", "e"]);
            orders.push(vec!["d", "f", "c", "e", "b", "a"]);
            for order in orders {
                let names = Names::within(&limits, &message(order.iter().map(host))).unwrap();
                let found: Vec<_> = names.table.table.keys().map(String::as_str).collect();
                assert_eq!(found, all[..kept], "{order:?}");
                assert_eq!(names.left_out, LeftOut { names: 6 - kept, addresses: 0 });
            }
        }
    }

    #[test]
    fn a_host_has_a_limit_of_addresses_and_aliases_and_none_that_is_too_long() {
        let long = "x".repeat(NAME + 1);
        let mut large = info(ADDRESSES + 7);
        large.ips.insert(0, "1".repeat(ADDRESS + 1));
        large.alt_hosts = (0..ALIASES + 3).map(|n| format!("{n}.example")).collect();
        large.alt_hosts.insert(0, long.clone());
        large.shortname = long.clone();
        let dotted = format!("{}.", "y".repeat(NAME));
        let hosts = [("large", large), (&long, info(1)), ("", info(1)), (&dotted, info(1))];
        let names = Names::decode(&message(hosts.into_iter())).unwrap();
        let kept = &names.table.table["large"];
        assert_eq!((kept.ips.len(), kept.alt_hosts.len()), (ADDRESSES, ALIASES));
        assert_eq!((&*kept.ips[0], &*kept.alt_hosts[0]), ("10.0.0.0", "0.example"));
        assert_eq!(names.table.table.len(), 2, "and one whose dot is not counted");
        assert_eq!(names.left_out, LeftOut { names: 1 + 3 + 1 + 2, addresses: 8 });
    }

    #[test]
    fn what_is_kept_takes_fewer_bytes_when_it_is_encoded() {
        let limits = Limits { bytes: 20_000, ..LIMITS };
        let names: Vec<_> = (0..500).map(|n| format!("{n:03}")).collect();
        let hosts = names
            .iter()
            .map(|name| (name.as_str(), NameInfo { ips: vec![String::new(); 9], ..info(0) }));
        let kept = Names::within(&limits, &message(hosts)).unwrap();
        assert!(kept.table.encoded_len() <= limits.bytes && !kept.left_out.is_nothing());
    }

    #[test]
    fn a_name_that_is_sent_twice_counts_once() {
        let names = Names::decode(&message([("a", info(1)), ("a", info(2))].into_iter())).unwrap();
        assert_eq!((names.table.table["a"].ips.len(), names.left_out), (2, LeftOut::default()));
    }
}
