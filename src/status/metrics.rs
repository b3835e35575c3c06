//! The metrics page, in Prometheus text format, under pilot-agent's names.
//!
//! Names and types: Istio `pkg/istio-agent/metrics`, `security/pkg/nodeagent/cache`; none of them
//! ends in `_total`, which is why no client library writes this page.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use super::model::{Board, Snapshot};
use super::scrape::Scrapes;
use crate::health::Health;

/// The media type of the page.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole page.
pub(super) fn page(board: &Board, scrapes: &Scrapes) -> String {
    let snapshot = board.snapshot();
    let mut page = Page(String::new());
    certificates(&mut page, &snapshot);
    credentials(&mut page, &snapshot);
    relay(&mut page, &snapshot);
    agent(&mut page, board, &snapshot);
    registration(&mut page, &snapshot);
    names(&mut page, &snapshot);
    health(&mut page, &snapshot);
    pages(&mut page, scrapes);
    page.0
}

fn certificates(page: &mut Page, snapshot: &Snapshot) {
    let renewal = &snapshot.identity.renewal;
    page.counter("num_outgoing_requests", "Certificate requests sent.", renewal.attempts);
    page.counter(
        "num_failed_outgoing_requests",
        "Certificate requests that failed.",
        renewal.failures,
    );
    page.counter(
        "num_outgoing_retries",
        "Certificate requests that were sent again after a failure.",
        renewal.failures.min(renewal.attempts),
    );
    if let Some(left) = snapshot.identity.expires_in {
        let labels = "{resource_name=\"default\"}";
        page.labelled("cert_expiry_seconds", "Seconds until it expires.", "gauge", labels, left);
    }
    if let Some(latency) = renewal.last_latency_ms {
        let labels = "{request_type=\"csr\"}";
        page.labelled("outgoing_latency", "Milliseconds of the last.", "gauge", labels, latency);
    }
}

fn credentials(page: &mut Page, snapshot: &Snapshot) {
    let view = &snapshot.credential;
    for rung in view.rungs.iter().chain(&view.kubernetes_api) {
        let labels = format!("{{rung=\"{}\"}}", rung.name);
        if let Some(left) = rung.expires_in {
            let help = "Seconds until the token or certificate expires.";
            page.labelled("credential_expiry_seconds", help, "gauge", &labels, left);
        }
    }
    for rung in view.rungs.iter().chain(&view.kubernetes_api) {
        let labels = format!("{{rung=\"{}\"}}", rung.name);
        let help = "Failures of a source of credentials.";
        page.labelled("credential_failures_total", help, "counter", &labels, rung.failures);
    }
}

fn relay(page: &mut Page, snapshot: &Snapshot) {
    let upstream = &snapshot.control_plane.upstream;
    page.counter(
        "istiod_connection_failures",
        "Connections to istiod that failed.",
        upstream.failures,
    );
    page.labelled(
        "istiod_connection_terminations",
        "Streams to istiod that ended.",
        "counter",
        "{type=\"error\"}",
        upstream.terminations,
    );
    page.counter("xds_proxy_requests", "Requests from the proxy to istiod.", upstream.requests);
    page.counter("xds_proxy_responses", "Responses from istiod to the proxy.", upstream.responses);
    page.counter(
        "xds_proxy_rejections",
        "Configuration that the proxy refused (NACK).",
        upstream.rejected,
    );
}

fn agent(page: &mut Page, board: &Board, snapshot: &Snapshot) {
    if let Some(milliseconds) = snapshot.timings.ready_ms {
        let seconds = std::time::Duration::from_millis(milliseconds).as_secs_f64();
        page.gauge("startup_duration_seconds", "From start to ready.", seconds);
    }
    page.gauge("uptime_seconds", "Since the agent started.", board.uptime().as_secs());
    page.gauge("ready", "1 when the machine is in the mesh.", u8::from(snapshot.ready));
    page.counter(
        "proxy_restarts",
        "Starts of the proxy after an end that nobody asked for.",
        snapshot.proxy.restarts,
    );
    page.counter(
        "proxy_ordered_restarts",
        "Starts of the proxy that somebody asked for.",
        snapshot.proxy.ordered_restarts,
    );
    if let Some(skew) = &snapshot.clock {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of centuries are exact")]
        let seconds = skew.ahead_ms as f64 / 1000.0;
        let help = "Seconds that this machine's clock is ahead of the others'.";
        page.gauge("clock_skew_seconds", help, seconds);
    }
    page.counter("sds_pushes", "Secrets sent to the proxy.", snapshot.sds.pushes);
    for condition in &snapshot.conditions {
        let labels = format!("{{room=\"{}\"}}", condition.room);
        page.labelled("condition", "Something is wrong in this room.", "gauge", &labels, 1);
    }
}

fn registration(page: &mut Page, snapshot: &Snapshot) {
    let state = &snapshot.registration;
    page.gauge("registered", "1 while the WorkloadEntry stands.", u8::from(state.registered));
    if state.manager.is_none() {
        return;
    }
    page.counter("registration_applies_total", "Times it was applied.", state.applies);
    page.counter("registration_drift_total", "Times it was found changed.", state.drift);
    page.counter("registration_conflicts_total", "Times others held fields.", state.conflicts);
}

fn names(page: &mut Page, snapshot: &Snapshot) {
    let dns = &snapshot.dns;
    if dns.listen.is_empty() {
        return;
    }
    page.counter("dns_requests_total", "Queries that came.", dns.queries);
    page.counter("dns_upstream_requests_total", "Queries for the resolvers.", dns.forwarded);
    page.counter("dns_upstream_failures_total", "Queries nobody answered.", dns.failures);
    page.counter("dns_cached_total", "Queries answered as a moment before.", dns.cached);
    page.gauge("dns_names", "Names of the mesh.", dns.names);
}

fn health(page: &mut Page, snapshot: &Snapshot) {
    let health = &snapshot.health;
    let healthy = u8::from(health.health == Health::Healthy);
    page.gauge("healthy", "1 when the application can take requests.", healthy);
    page.counter("health_checks_total", "Checks of the application.", health.checks);
    page.counter("health_check_failures_total", "Those that went wrong.", health.failures);
}

fn pages(page: &mut Page, scrapes: &Scrapes) {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    page.counter("scrapes_total", "Metrics pages that were asked for.", of(&scrapes.total));
    let failures =
        [("envoy", &scrapes.proxy_failures), ("application", &scrapes.application_failures)];
    for (whose, counter) in failures {
        let labels = format!("{{type=\"{whose}\"}}");
        let help = "Pages of others that could not be read.";
        page.labelled("scrape_failures_total", help, "counter", &labels, of(counter));
    }
}

/// The page while it is written. Writing to a string cannot fail.
struct Page(String);

impl Page {
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.labelled(name, help, "counter", "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.labelled(name, help, "gauge", "", value);
    }

    fn labelled(&mut self, name: &str, help: &str, kind: &str, labels: &str, value: impl Display) {
        let heading = format!("# TYPE istio_agent_{name} {kind}\n");
        if !self.0.contains(&heading) {
            write!(self.0, "# HELP istio_agent_{name} {help}\n{heading}").ok();
        }
        writeln!(self.0, "istio_agent_{name}{labels} {value}").ok();
    }
}
