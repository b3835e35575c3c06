//! What an Envoy has counted, read from its page in Prometheus' text format.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// Counts since the proxy's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// TLS handshakes with callers.
    pub(super) handshakes: u64,
    /// Requests and connections that a policy refused.
    pub(super) denied: u64,
    /// Connections that came without mutual TLS where it is asked for.
    pub(super) plain: u64,
    /// Requests sent, by whom they went to.
    pub(super) calls: BTreeMap<Target, u64>,
    /// Requests that were answered with 403, by host.
    pub(super) forbidden: BTreeMap<String, u64>,
}

/// An endpoint of a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) host: String,
    /// Address and port.
    pub(super) endpoint: String,
}

impl Counters {
    /// Lines that are none, or about something else, are passed over.
    pub(super) fn read(page: &str) -> Self {
        let mut counters = Self::default();
        for line in page.lines() {
            if let Some(sample) = Sample::read(line) {
                counters.add(&sample);
            }
        }
        counters
    }

    fn add(&mut self, sample: &Sample<'_>) {
        let label = |name: &str| sample.labels.get(name).map(String::as_str).unwrap_or_default();
        let inbound = label("listener_address").ends_with(INBOUND);
        let sum = match sample.name {
            "envoy_listener_ssl_handshake" if inbound => &mut self.handshakes,
            "envoy_listener_no_filter_chain_match" if inbound => &mut self.plain,
            name if name.ends_with("rbac") && label("authz_enforce_result") == "denied" => {
                &mut self.denied
            }
            "envoy_cluster_endpoint_rq_total" => {
                let Some(host) = host(label("envoy_cluster_name")) else { return };
                let endpoint = label("envoy_endpoint_address").to_owned();
                self.calls.entry(Target { host, endpoint }).or_default()
            }
            "envoy_cluster_upstream_rq" if label("response_code") == "403" => {
                let Some(host) = host(label("cluster_name")) else { return };
                self.forbidden.entry(host).or_default()
            }
            _ => return,
        };
        *sum = sum.saturating_add(sample.value);
    }
}

/// The host of a cluster such as `outbound|80||details.internal.com;`.
fn host(cluster: &str) -> Option<String> {
    let mut parts = cluster.strip_prefix("outbound|")?.splitn(3, '|');
    parts.nth(2).map(|host| host.trim_end_matches(';').to_owned())
}

/// One line of the page.
struct Sample<'a> {
    name: &'a str,
    labels: BTreeMap<&'a str, String>,
    value: u64,
}

impl<'a> Sample<'a> {
    fn read(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let end = line.find(['{', ' '])?;
        let (name, rest) = line.split_at(end);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (BTreeMap::new(), rest),
        };
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(Self { name, labels, value })
    }
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(BTreeMap<&str, String>, &str)> {
    let mut found = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((found, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        found.insert(name, value);
        rest = after;
    }
}

/// A text up to its closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, text.get(at.checked_add(1)?..)?)),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

/// The counts of the last seconds.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<(Instant, Counters)>,
}

impl History {
    pub(super) fn add(&mut self, now: Instant, counters: Counters) {
        let restarted = self.last().is_some_and(|last| {
            counters.handshakes < last.handshakes
                || last.calls.iter().any(|(target, count)| {
                    counters.calls.get(target).is_some_and(|now| now < count)
                })
        });
        if restarted {
            self.samples.clear();
        }
        self.samples.push_back((now, counters));
        // The oldest that is kept is as old as the window, or a little older.
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// The newest counts.
    pub(super) fn last(&self) -> Option<&Counters> {
        self.samples.back().map(|(_, counters)| counters)
    }

    /// By how much a count grows in a second.
    pub(super) fn rate(&self, count: impl Fn(&Counters) -> u64) -> f64 {
        let (Some((from, first)), Some((to, last))) = (self.samples.front(), self.samples.back())
        else {
            return 0.0;
        };
        let seconds = to.duration_since(*from).as_secs_f64();
        let more = u32::try_from(count(last).saturating_sub(count(first))).unwrap_or(u32::MAX);
        if seconds > 0.0 { f64::from(more) / seconds } else { 0.0 }
    }

    /// Nobody answered: what was counted stays, and nothing grows.
    pub(super) fn pause(&mut self) {
        while self.samples.len() > 1 {
            self.samples.pop_front();
        }
    }
}

/// The listener that the redirect rules send what comes in to (Istio's port 15006).
const INBOUND: &str = "_15006";
/// Long enough for a steady figure, short enough to see a change.
const WINDOW: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = r#"# TYPE envoy_cluster_endpoint_rq_total counter
envoy_cluster_endpoint_rq_total{envoy_cluster_name="outbound|80||details.internal.com;",envoy_endpoint_address="10.99.0.12:9080"} 7
envoy_cluster_endpoint_rq_total{envoy_cluster_name="xds-grpc",envoy_endpoint_address="/run/xds.sock"} 1
envoy_cluster_upstream_rq{response_code="403",cluster_name="outbound|80||details.internal.com;"} 2
envoy_cluster_upstream_rq{response_code="200",cluster_name="outbound|80||details.internal.com;"} 5
envoy_http_rbac{authz_enforce_result="denied",http_conn_manager_prefix="inbound_0.0.0.0_9080;"} 3
envoy_http_rbac{authz_enforce_result="allowed",http_conn_manager_prefix="inbound_0.0.0.0_9080;"} 90
envoy_tcp_rbac{authz_enforce_result="denied"} 1
envoy_listener_ssl_handshake{listener_address="0.0.0.0_15006"} 4
envoy_listener_no_filter_chain_match{listener_address="0.0.0.0_15006"} 6
envoy_listener_no_filter_chain_match{listener_address="0.0.0.0_15001"} 8
envoy_server_uptime{} 12.5
"#;

    #[test]
    fn calls_refusals_and_handshakes_are_found_on_envoys_page() {
        let counters = Counters::read(PAGE);
        assert_eq!((counters.handshakes, counters.denied, counters.plain), (4, 4, 6));
        let target = Target {
            host: "details.internal.com".to_owned(),
            endpoint: "10.99.0.12:9080".to_owned(),
        };
        assert_eq!(counters.calls, BTreeMap::from([(target, 7)]));
        assert_eq!(counters.forbidden, BTreeMap::from([("details.internal.com".to_owned(), 2)]));
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_those_of_the_last_seconds() {
        let (mut history, start) = (History::default(), Instant::now());
        for second in 0..10 {
            let denied = if second < 5 { 0 } else { (second - 5) * 3 };
            let counters = Counters { denied, handshakes: 100, ..Counters::default() };
            history.add(start + Duration::from_secs(second), counters);
        }
        assert!((history.rate(|counters| counters.denied) - 3.0).abs() < 0.01);
        let fresh = Counters { denied: 1, ..Counters::default() };
        history.add(start + Duration::from_secs(10), fresh);
        let rate = history.rate(|counters| counters.denied);
        assert!(rate.abs() < 0.01, "a restarted Envoy counts anew: {rate}");
    }

    proptest! {
        #[test]
        fn any_page_is_read(page in r#"([a-z_]{0,9}\{?[a-z"=\\,|;]{0,20}\}? ?[0-9]{0,22}\n?){0,9}"#) {
            Counters::read(&page);
        }
    }
}
