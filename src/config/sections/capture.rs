//! `capture`: which traffic goes through the proxy.

use std::collections::BTreeSet;

use crate::capture::{
    Backend, Cidr, FailPolicy, Flavour, Interception, Interfaces, Ipv6, Ipv6Policy, Ports, Ranges,
    parse_interface, parse_ports,
};
use crate::config::paths::Paths;
use crate::config::reader::Reader;

/// The rules that the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Whether and by what traffic is captured.
    pub mode: CaptureMode,
    /// How inbound connections reach the proxy.
    pub interception: Interception,
    /// Inbound ports that go through the proxy.
    pub inbound_ports: Ports,
    /// Inbound ports that never do, besides SSH's and our own.
    pub excluded_inbound_ports: BTreeSet<u16>,
    /// Where to, of outbound connections that go through the proxy.
    pub outbound_ranges: Ranges,
    /// Where to, of those that never do.
    pub excluded_outbound_ranges: Vec<Cidr>,
    /// Outbound ports that go through the proxy wherever they lead.
    pub included_outbound_ports: BTreeSet<u16>,
    /// Outbound ports that never do.
    pub excluded_outbound_ports: BTreeSet<u16>,
    /// The groups whose outbound connections are looked at; `None` for everybody's.
    pub included_groups: Option<Vec<String>>,
    /// The groups whose outbound connections are not.
    pub excluded_groups: Vec<String>,
    /// Interfaces with a meaning of their own.
    pub interfaces: Interfaces,
    /// The IPv4 loopback range that is left alone.
    pub loopback: Cidr,
    /// What becomes of IPv6.
    pub ipv6: Ipv6Policy,
    /// Whether packets of no connection are dropped.
    pub drop_invalid: bool,
    /// What becomes of the rules when the proxy is gone for good.
    pub fail_policy: FailPolicy,
}

/// Whether and by what traffic is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureMode {
    /// By nftables where `nft` is installed, else by iptables.
    Auto,
    /// Not at all.
    None,
    /// By this.
    By(Backend),
}

impl Capture {
    pub(super) fn read(reader: &mut Reader<'_>, paths: &Paths) -> Option<Self> {
        let mode = mode(reader, paths);
        let interception = interception(reader);
        let inbound_ports = parsed(reader, "capture.inboundPorts", "*", Ports::parse);
        let excluded_inbound_ports = ports(reader, "capture.excludeInboundPorts");
        let outbound_ranges = ranges(reader);
        let excluded_outbound_ranges = cidrs(reader, "capture.excludeOutboundRanges");
        let included_outbound_ports = ports(reader, "capture.includeOutboundPorts");
        let excluded_outbound_ports = ports(reader, "capture.excludeOutboundPorts");
        let included = reader.list("capture.includeOutboundGroups", "*");
        let excluded_groups = reader.list("capture.excludeOutboundGroups", "");
        let interfaces = Interfaces {
            excluded: interfaces(reader, "capture.excludeInterfaces", ""),
            bridges: interfaces(reader, "capture.bridges", BRIDGES),
            guests: interfaces(reader, "capture.guestInterfaces", ""),
        };
        let loopback = loopback(reader);
        let ipv6 = ipv6(reader);
        let drop_invalid = reader.flag("capture.dropInvalid", false);
        let fail_policy = fail_policy(reader);
        Some(Self {
            mode: mode?,
            interception: interception?,
            inbound_ports: inbound_ports?,
            excluded_inbound_ports,
            outbound_ranges: outbound_ranges?,
            excluded_outbound_ranges,
            included_outbound_ports,
            excluded_outbound_ports,
            included_groups: (included != ["*"]).then_some(included),
            excluded_groups,
            interfaces,
            loopback: loopback?,
            ipv6: ipv6?,
            drop_invalid,
            fail_policy: fail_policy?,
        })
    }
}

/// An agent with a root of its own leaves the host's rules alone unless it is told otherwise.
fn mode(reader: &mut Reader<'_>, paths: &Paths) -> Option<CaptureMode> {
    let usual = if paths.root() == std::path::Path::new("/") { "auto" } else { "none" };
    let choices = [
        ("auto", CaptureMode::Auto),
        ("nftables", CaptureMode::By(Backend::Nftables)),
        ("iptables", CaptureMode::By(Backend::Iptables(Flavour::Auto))),
        ("iptables-nft", CaptureMode::By(Backend::Iptables(Flavour::Nft))),
        ("iptables-legacy", CaptureMode::By(Backend::Iptables(Flavour::Legacy))),
        ("none", CaptureMode::None),
    ];
    reader.choice("capture.mode", usual, &choices)
}

/// Istio writes it in capitals.
fn interception(reader: &mut Reader<'_>) -> Option<Interception> {
    let choices = [
        ("redirect", Interception::Redirect),
        ("tproxy", Interception::Tproxy),
        ("REDIRECT", Interception::Redirect),
        ("TPROXY", Interception::Tproxy),
    ];
    reader.choice("capture.interception", "redirect", &choices)
}

fn ipv6(reader: &mut Reader<'_>) -> Option<Ipv6Policy> {
    let choices = [
        ("auto", Ipv6Policy::Auto),
        ("redirect", Ipv6Policy::Always(Ipv6::Redirect)),
        ("reject", Ipv6Policy::Always(Ipv6::Reject)),
        ("leave", Ipv6Policy::Always(Ipv6::Leave)),
    ];
    reader.choice("capture.ipv6", "auto", &choices)
}

fn fail_policy(reader: &mut Reader<'_>) -> Option<FailPolicy> {
    let choices = [("open", FailPolicy::Open), ("closed", FailPolicy::Closed)];
    reader.choice("capture.failPolicy", "open", &choices)
}

fn parsed<T>(
    reader: &mut Reader<'_>,
    setting: &str,
    default: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let text = reader.list(setting, default).join(",");
    match parse(&text) {
        Ok(value) => Some(value),
        Err(what) => {
            reader.wrong(setting, what);
            None
        }
    }
}

fn ports(reader: &mut Reader<'_>, setting: &str) -> BTreeSet<u16> {
    parsed(reader, setting, "", parse_ports).unwrap_or_default()
}

fn ranges(reader: &mut Reader<'_>) -> Option<Ranges> {
    let setting = "capture.outboundRanges";
    if reader.list(setting, "*") == ["*"] {
        return Some(Ranges::All);
    }
    Some(Ranges::Only(each(reader, setting, "*", |text| text.parse())))
}

fn cidrs(reader: &mut Reader<'_>, setting: &str) -> Vec<Cidr> {
    each(reader, setting, "", |text| text.parse())
}

fn interfaces(reader: &mut Reader<'_>, setting: &str, default: &str) -> Vec<String> {
    each(reader, setting, default, parse_interface)
}

fn each<T>(
    reader: &mut Reader<'_>,
    setting: &str,
    default: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut all = Vec::new();
    for text in reader.list(setting, default) {
        match parse(&text) {
            Ok(one) => all.push(one),
            Err(what) => reader.wrong(setting, what),
        }
    }
    all
}

fn loopback(reader: &mut Reader<'_>) -> Option<Cidr> {
    let setting = "capture.loopbackRange";
    let range: Cidr = reader.parse(setting, "127.0.0.1/32")?;
    if !range.is_loopback() || !range.is_ipv4() {
        let what = format!("found {range}, expected a range within 127.0.0.0/8");
        reader.wrong(setting, what);
    }
    Some(range)
}

/// What container engines and hypervisors call their bridges. The interface that the machine
/// itself is reached by is none, whatever its name.
const BRIDGES: &str = "docker*,br-*,cni*,podman*,virbr*,lxcbr*,lxdbr*,cali*,flannel*";
