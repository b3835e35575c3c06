//! The host's resolvers: who they are now, and which of them is worth asking.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Upstreams;
use crate::base::fsio;

/// Who is asked, and in which order.
#[derive(Debug)]
pub(super) struct Resolvers {
    from: Upstreams,
    own: Vec<SocketAddr>,
    servers: Vec<SocketAddr>,
    /// The search domains, in lower case without dots at the ends.
    search: Vec<String>,
    /// Those that did not answer our own probe, and until when they are left alone.
    silent: BTreeMap<SocketAddr, Instant>,
    /// Those that left a query unanswered. A name that nobody answers for is no fault of a resolver,
    /// and anybody can ask for one: they are probed before they count as silent.
    suspects: BTreeSet<SocketAddr>,
    /// When each answered last, whatever it was asked.
    answered: BTreeMap<SocketAddr, Instant>,
    looked_at: Option<Instant>,
    seen: Option<(SystemTime, u64)>,
    problem: Option<String>,
    generation: u64,
}

impl Resolvers {
    pub(super) fn new(from: Upstreams, own: Vec<SocketAddr>) -> Self {
        let mut made = Self {
            from,
            own,
            servers: Vec::new(),
            search: Vec::new(),
            silent: BTreeMap::new(),
            suspects: BTreeSet::new(),
            answered: BTreeMap::new(),
            looked_at: None,
            seen: None,
            problem: None,
            generation: 0,
        };
        made.refresh();
        made
    }

    /// Reads the file anew when it has changed; looks at it at most once a second. Says whether
    /// anything is different now.
    pub(super) fn refresh(&mut self) -> bool {
        if self.looked_at.is_some_and(|at| at.elapsed() < LOOK) {
            return false;
        }
        self.looked_at = Some(Instant::now());
        let (servers, search) = match &self.from {
            Upstreams::Fixed(servers) => (servers.clone(), Vec::new()),
            Upstreams::ResolvConf(path) => {
                let stamp = stamp(path);
                if stamp.is_some() && stamp == self.seen {
                    return false;
                }
                self.seen = stamp;
                match fsio::read_text(path, BYTES) {
                    Ok(text) => parse(&text),
                    Err(error) => {
                        self.problem = Some(crate::base::trouble::chain(&error));
                        return true;
                    }
                }
            }
        };
        let (ourselves, servers): (Vec<_>, Vec<_>) =
            servers.into_iter().partition(|server| self.is_ourselves(*server));
        self.problem = match (ourselves.first(), servers.is_empty()) {
            (Some(one), _) => Some(format!("the resolver {one} is the agent itself")),
            (None, true) => Some("there is no resolver for names outside the mesh".to_owned()),
            (None, false) => None,
        };
        if servers != self.servers {
            self.generation = self.generation.wrapping_add(1);
            self.suspects.clear();
            self.answered.clear();
        }
        (self.servers, self.search) = (servers, search);
        true
    }

    /// What is wrong with the list.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Another number for another list of servers.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    pub(super) fn search(&self) -> &[String] {
        &self.search
    }

    /// Whom to ask, in order: those that did not answer lately come last.
    pub(super) fn order(&mut self) -> Vec<SocketAddr> {
        let now = Instant::now();
        self.silent.retain(|_, until| *until > now);
        let (silent, good): (Vec<_>, Vec<_>) =
            self.servers.iter().copied().partition(|server| self.silent.contains_key(server));
        good.into_iter().chain(silent).collect()
    }

    pub(super) fn answered(&mut self, server: SocketAddr) {
        self.silent.remove(&server);
        self.suspects.remove(&server);
        self.answered.insert(server, Instant::now());
    }

    /// It left a query unanswered.
    pub(super) fn suspect(&mut self, server: SocketAddr) {
        self.suspects.insert(server);
    }

    /// Those that are worth a probe: suspected or silent.
    pub(super) fn take_due(&mut self) -> Vec<SocketAddr> {
        let suspects = std::mem::take(&mut self.suspects);
        let is_due =
            |server: &&SocketAddr| suspects.contains(server) || self.silent.contains_key(server);
        self.servers.iter().filter(is_due).copied().collect()
    }

    /// Whether there is one to probe again later.
    pub(super) fn has_silent(&self) -> bool {
        self.servers.iter().any(|server| self.silent.contains_key(server))
    }

    /// It did not answer a probe of our own that began at `since`.
    pub(super) fn was_silent(&mut self, server: SocketAddr, since: Instant) {
        if self.answered.get(&server).is_none_or(|at| *at < since) {
            self.silent.insert(server, Instant::now() + SILENCE);
        }
    }

    /// Whether none of them answers: each is silent.
    pub(super) fn all_are_silent(&self) -> bool {
        !self.servers.is_empty()
            && self.servers.iter().all(|server| self.silent.contains_key(server))
    }

    fn is_ourselves(&self, server: SocketAddr) -> bool {
        let any = |own: &SocketAddr| own.ip().is_unspecified() && server.ip().is_loopback();
        self.own
            .iter()
            .any(|own| own.port() == server.port() && (own.ip() == server.ip() || any(own)))
    }
}

/// Servers and search domains of a resolv.conf (resolv.conf(5)); what makes no sense is skipped.
#[must_use]
pub fn parse(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().and_then(server)),
            // The last of them counts.
            Some("search" | "domain") => {
                let domains = words.map(|word| word.trim_matches('.').to_ascii_lowercase());
                search = domains.filter(|domain| !domain.is_empty()).take(DOMAINS).collect();
            }
            _ => {}
        }
    }
    servers.truncate(SERVERS);
    (servers, search)
}

/// An address; one of a link carries the link's number.
fn server(word: &str) -> Option<SocketAddr> {
    if let Ok(ip) = word.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, PORT));
    }
    let (ip, link) = word.split_once('%')?;
    let index = nix::net::if_::if_nametoindex(link).ok().or_else(|| link.parse().ok())?;
    let ip = ip.parse().ok()?;
    Some(SocketAddr::V6(std::net::SocketAddrV6::new(ip, PORT, 0, index)))
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    use std::os::unix::fs::MetadataExt;
    let about = std::fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.ino()))
}

const PORT: u16 = 53;
const BYTES: u64 = 64 * 1024;
/// Far more than the C library looks at.
const SERVERS: usize = 8;
const DOMAINS: usize = 32;
/// How often the file is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// How long one that did not answer is asked last; longer than it takes to probe it again.
const SILENCE: Duration = Duration::from_secs(20);
