//! How names are answered for applications.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::capture::nameservers;
use crate::config::{Paths, Settings};
use crate::dns::{Config, Upstreams};

/// `None` where no query would arrive: none is redirected, and nobody names the agent as resolver.
pub(super) fn names(settings: &Settings, paths: &Paths, captured: bool) -> Option<Config> {
    let wanted = &settings.dns;
    if !wanted.enabled || (!captured && wanted.listen.is_none()) {
        return None;
    }
    let mut listen: Vec<SocketAddr> = Vec::new();
    if captured {
        // Redirected queries arrive at the loopback address of their family.
        listen.push((Ipv4Addr::LOCALHOST, wanted.port).into());
        listen.push((Ipv6Addr::LOCALHOST, wanted.port).into());
    }
    listen.extend(wanted.listen.filter(|address| !listen.contains(address)));
    let namespace = &settings.workload.namespace;
    let domain = wanted.domain.clone();
    Some(Config {
        listen,
        allow_from: wanted.allow_from.clone(),
        upstreams: if wanted.upstreams.is_empty() {
            Upstreams::ResolvConf(resolv_conf(wanted.all_queries))
        } else {
            Upstreams::Fixed(wanted.upstreams.clone())
        },
        domain: domain.unwrap_or_else(|| format!("{namespace}.svc.cluster.local")),
        last_table: paths.name_table(),
    })
}

/// Where all queries are captured, those of systemd-resolved are, too: asking it would ask
/// ourselves. Then its own resolvers are asked.
fn resolv_conf(all_queries: bool) -> PathBuf {
    let usual = Path::new("/etc/resolv.conf");
    let behind = Path::new("/run/systemd/resolve/resolv.conf");
    let stub = Ipv4Addr::new(127, 0, 0, 53);
    let is_stub = nameservers(usual).iter().all(|server| *server == stub);
    if all_queries && is_stub && behind.exists() { behind.to_owned() } else { usual.to_owned() }
}
