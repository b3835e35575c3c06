//! What the rules for the host's traffic are to be: settings, and facts of this host.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use nix::unistd::Group;

use crate::capture::{
    Backend, Capture, Config, DnsCapture, FailPolicy, Flavour, Groups, Inbound, Ipv6, Ipv6Policy,
    Listeners, Outbound, Owner, ProxyPorts, has_ipv6, host_facts, nameservers, nft_is_installed,
};
use crate::config::{CaptureMode, Paths, Settings};
use crate::envoy::ProxyUser;
use crate::platform;
use crate::workload::Workload;

use super::PlanError;
use super::proxy::launch_socket;

/// How the host's traffic is captured.
#[derive(Clone, Debug)]
pub struct CapturePlan {
    /// The hand on the rules.
    pub capture: Capture,
    /// The rules, as of when the plan was made.
    pub config: Config,
    /// What becomes of them when the proxy is gone for good.
    pub fail_policy: FailPolicy,
    /// Whether only queries to the host's resolvers are captured.
    pub follows_resolvers: bool,
    /// What the operator wants of IPv6.
    pub ipv6: Ipv6Policy,
    /// The address that the machine is registered with, where it is an IP address.
    pub registered: Option<IpAddr>,
}

impl CapturePlan {
    /// The rules for the host as it is now: its resolvers, its IPv6 and the proxy's listeners may
    /// have changed.
    #[must_use]
    pub fn current(&self) -> Config {
        let mut config = self.config.clone();
        if let (Some(dns), true) = (&mut config.dns, self.follows_resolvers) {
            dns.servers = Some(nameservers(Path::new(RESOLV_CONF)));
        }
        config.ipv6 = ipv6(self.ipv6, config.proxy_ports, &self.capture);
        config
    }
}

/// What becomes of IPv6, by what the proxy listens on; while it does not, as it was before.
fn ipv6(policy: Ipv6Policy, ports: ProxyPorts, capture: &Capture) -> Ipv6 {
    let before = capture.last_config().map(|config| config.ipv6);
    policy.decide(has_ipv6(), &Listeners::look(ports), before)
}

/// `None` where nothing is captured.
///
/// # Errors
/// When a group does not exist, or the proxy cannot be told from other programs.
pub(super) fn capture(
    settings: &Settings,
    paths: &Paths,
    workload: &Workload,
    user: Option<ProxyUser>,
) -> Result<Option<CapturePlan>, PlanError> {
    let wanted = &settings.capture;
    let backend = match wanted.mode {
        CaptureMode::None => return Ok(None),
        CaptureMode::By(backend) => backend,
        CaptureMode::Auto if nft_is_installed() => Backend::Nftables,
        CaptureMode::Auto => Backend::Iptables(Flavour::Auto),
    };
    let user = user.ok_or(PlanError::CaptureNeedsRoot)?;
    if user.uid == 0 || user.gid == 0 {
        return Err(PlanError::CaptureOfRoot);
    }
    let address = workload.instance_ips.first().copied();
    let facts = host_facts(&platform::interface_addresses(), address, Path::new(SSHD));
    let mut excluded = wanted.excluded_inbound_ports.clone();
    excluded.extend(facts.ssh_ports.iter().copied());
    excluded.extend(own_ports(settings));
    let servers = (!settings.dns.all_queries).then(|| nameservers(Path::new(RESOLV_CONF)));
    let capture = Capture::new(paths.capture_journal())
        .with_launcher(launch_socket(paths))
        .with_restore_at_boot(wanted.fail_policy == FailPolicy::Closed);
    let proxy_ports = ProxyPorts::with_admin(super::outline::admin_port(settings));
    let config = Config {
        backend,
        interception: wanted.interception,
        owner: Owner { uid: user.uid, gid: user.gid },
        proxy_ports,
        inbound: Inbound { ports: wanted.inbound_ports.clone(), excluded },
        outbound: Outbound {
            ranges: wanted.outbound_ranges.clone(),
            excluded_ranges: wanted.excluded_outbound_ranges.clone(),
            included_ports: wanted.included_outbound_ports.clone(),
            excluded_ports: wanted.excluded_outbound_ports.clone(),
            groups: groups(settings)?,
        },
        interfaces: wanted.interfaces.clone().with_uplink(facts.own_interface.as_deref()),
        dns: settings.dns.enabled.then_some(DnsCapture { port: settings.dns.port, servers }),
        loopback: wanted.loopback,
        ipv6: ipv6(wanted.ipv6, proxy_ports, &capture),
        drop_invalid: wanted.drop_invalid,
        delay_inbound: false,
    };
    Ok(Some(CapturePlan {
        capture,
        config,
        fail_policy: wanted.fail_policy,
        follows_resolvers: !settings.dns.all_queries,
        ipv6: wanted.ipv6,
        registered: workload.address.ip(),
    }))
}

/// Connections to the agent and to the proxy's own pages.
fn own_ports(settings: &Settings) -> BTreeSet<u16> {
    let admin = super::outline::admin_port(settings);
    [settings.status.listen.port(), admin, 15_021, 15_090, 15_053].into()
}

fn groups(settings: &Settings) -> Result<Groups, PlanError> {
    let number = |name: &String| match name.parse::<u32>() {
        Ok(gid) => Ok(gid),
        Err(_) => {
            let found = Group::from_name(name).ok().flatten();
            let missing = || PlanError::Group { name: name.clone() };
            found.map(|group| group.gid.as_raw()).ok_or_else(missing)
        }
    };
    let wanted = &settings.capture;
    match &wanted.included_groups {
        Some(names) => Ok(Groups::Only(names.iter().map(number).collect::<Result<_, _>>()?)),
        None => {
            let names = &wanted.excluded_groups;
            Ok(Groups::AllBut(names.iter().map(number).collect::<Result<_, _>>()?))
        }
    }
}

/// The host's resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const SSHD: &str = "/etc/ssh/sshd_config";
