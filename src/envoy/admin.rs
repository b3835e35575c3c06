//! Envoy's admin interface: a few questions, each with a limit of time and size.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::ConfigCounts;

/// The admin interface on localhost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admin {
    pub(super) port: u16,
}

/// A page of the admin interface that tells what is so and holds no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Its clusters and their endpoints.
    Clusters,
    /// Its version, its command line, its node.
    ServerInfo,
    /// Its counters.
    Stats,
}

/// Reads a page of the proxy that listens at this port of localhost.
///
/// # Errors
/// When nobody answers in time, or the answer has more than a mebibyte.
pub async fn page(port: u16, page: Page) -> io::Result<String> {
    let path = match page {
        Page::Clusters => "/clusters",
        Page::ServerInfo => "/server_info",
        // Those that were never counted say nothing.
        Page::Stats => "/stats?usedonly",
    };
    Admin { port }.ask(Method::GET, path).await
}

/// What Envoy says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// It has taken clusters and listeners, and its workers run.
    pub(super) ready: bool,
    /// It was taken out of traffic: it fails its own health check.
    pub(super) drained: bool,
    pub(super) config: ConfigCounts,
}

impl Admin {
    /// Where Envoy stands, by the same statistics as Istio's probe (`status/ready/probe.go`).
    pub(super) async fn report(self) -> io::Result<Report> {
        let text = self.ask(Method::GET, READINESS).await?;
        let value = |name: &str| stat(&text, name);
        let config = ConfigCounts {
            cds_updates: value("cluster_manager.cds.update_success").unwrap_or(0),
            lds_updates: value("listener_manager.lds.update_success").unwrap_or(0),
            rejected: value("cluster_manager.cds.update_rejected")
                .unwrap_or(0)
                .saturating_add(value("listener_manager.lds.update_rejected").unwrap_or(0)),
        };
        // The state follows a drain and its end only seconds later.
        let runs = matches!(value("server.state"), Some(LIVE | DRAINING));
        let ready = config.cds_updates > 0
            && config.lds_updates > 0
            && runs
            && value("listener_manager.workers_started") == Some(1);
        Ok(Report { ready, drained: value("server.live") == Some(0), config })
    }

    /// Its version, such as `1.40.0`.
    pub(super) async fn version(self) -> io::Result<String> {
        let text = self.ask(Method::GET, "/server_info").await?;
        let info: serde_json::Value = serde_json::from_str(&text)?;
        // `COMMIT/1.40.0/Clean/RELEASE/BoringSSL`
        let version = info.get("version").and_then(serde_json::Value::as_str).unwrap_or_default();
        let number = version.split('/').nth(1);
        number.map(str::to_owned).ok_or_else(|| io::Error::other("it tells no version"))
    }

    /// Takes it out of traffic: every connection ends after what is under way on it, and what comes
    /// is served all the same. [`Admin::undrain`] takes it back.
    pub(super) async fn drain(self) -> io::Result<()> {
        self.ask(Method::POST, "/healthcheck/fail").await.map(drop)
    }

    /// Takes it back into traffic.
    pub(super) async fn undrain(self) -> io::Result<()> {
        self.ask(Method::POST, "/healthcheck/ok").await.map(drop)
    }

    /// Prepares it for its end: has every inbound connection end, waits until none is left and
    /// nobody comes any more, for at most `limit`, and takes none after that; what is under way has
    /// another moment. Nothing can take this back.
    pub(super) async fn retire(self, limit: Duration) -> io::Result<()> {
        let path = "/drain_listeners?inboundonly&graceful&skip_exit";
        self.ask(Method::POST, path).await?;
        drop(timeout(limit, self.quiet()).await);
        // Who comes from now on is refused, and the proxies of the others turn to another machine.
        self.ask(Method::POST, "/drain_listeners?inboundonly").await?;
        if timeout(CLOSING_LIMIT, self.empty()).await.is_err() {
            tracing::info!("Connections are still open; ending the proxy all the same.");
        }
        Ok(())
    }

    /// Waits until no connection is left, and none has come for a while: one that comes now and then
    /// is of somebody who has not heard yet. It gives up when it gets no answer.
    async fn quiet(self) {
        let (mut quiet, mut arrived) = (0, None);
        while quiet < QUIET {
            sleep(LOOK).await;
            let Ok(now) = self.connections().await else { return };
            let is_quiet = now.open == 0 && arrived == Some(now.arrived);
            quiet = if is_quiet { quiet + 1 } else { 0 };
            arrived = Some(now.arrived);
        }
    }

    /// Waits until no connection is left. It gives up when it gets no answer.
    async fn empty(self) {
        // The workers close what they close on their own: it is gone by the first look.
        loop {
            sleep(LOOK).await;
            if !matches!(self.connections().await, Ok(Connections { open: 1.., .. })) {
                return;
            }
        }
    }

    /// `server.total_connections` would not do: Envoy brings it up to date only every few seconds.
    async fn connections(self) -> io::Result<Connections> {
        let path = "/stats?filter=downstream_cx_(active%7Ctotal)%24";
        Ok(Connections::read(&self.ask(Method::GET, path).await?))
    }

    pub(super) async fn ask(self, method: Method, path: &str) -> io::Result<String> {
        let answer = timeout(LIMIT, self.exchange(method, path)).await;
        answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn exchange(self, method: Method, path: &str) -> io::Result<String> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(io::Error::other)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "localhost")
            .header(http::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let talk = async {
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BYTES).collect().await;
            let body = body.map_err(io::Error::other)?.to_bytes();
            if status.is_success() {
                Ok(String::from_utf8_lossy(&body).into_owned())
            } else {
                Err(io::Error::other(format!("HTTP {status}")))
            }
        };
        // The connection has to be driven while we wait; whichever ends first, the answer counts.
        let mut talk = std::pin::pin!(talk);
        tokio::select! {
            answer = &mut talk => answer,
            ended = connection => {
                ended.map_err(io::Error::other)?;
                talk.await
            }
        }
    }
}

/// A statistic of the text form: `name: value`.
fn stat(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
    line.trim().parse().ok()
}

/// Connections to listeners, those to our own pages and to the admin interface apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Connections {
    /// Open now.
    open: u64,
    /// Inbound ones that ever came.
    arrived: u64,
}

impl Connections {
    /// The sum over listeners; those of single workers count the same connections again.
    fn read(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines().filter_map(|line| line.strip_prefix("listener.")) {
            let Some((name, value)) = line.split_once(": ") else { continue };
            let Ok(value) = value.trim().parse::<u64>() else { continue };
            let skipped = name.contains("_15021.")
                || name.contains("_15090.")
                || name.starts_with("admin.")
                || name.contains(".worker_");
            if skipped {
                continue;
            }
            if name.ends_with(INBOUND_ARRIVALS) {
                found.arrived = found.arrived.saturating_add(value);
            } else if name.ends_with(".downstream_cx_active") {
                found.open = found.open.saturating_add(value);
            }
        }
        found
    }
}

/// `^(cluster_manager\.cds|listener_manager\.lds)\.(update_success|update_rejected)$|…`
const READINESS: &str = "/stats?filter=%5E%28cluster_manager%5C.cds%5C.update_success%7C\
cluster_manager%5C.cds%5C.update_rejected%7Clistener_manager%5C.lds%5C.update_success%7C\
listener_manager%5C.lds%5C.update_rejected%7Cserver%5C.%28state%7Clive%29%7Clistener_manager%5C.workers_started%29%24";
/// Two values of `server.state` (Envoy `api/envoy/admin/v3/server_info.proto`).
const LIVE: u64 = 0;
const DRAINING: u64 = 1;
/// The statistic that counts inbound connections, without the name of the listener's address.
pub(super) const INBOUND_ARRIVALS: &str = "_15006.downstream_cx_total";
const LOOK: Duration = Duration::from_millis(200);
/// What is under way may end after the last connection was taken.
const CLOSING_LIMIT: Duration = Duration::from_secs(1);
/// Looks in a row at which nobody was there.
const QUIET: u32 = 3;
/// A proxy that answers later than this hangs.
const LIMIT: Duration = Duration::from_secs(3);
/// The answers that we ask for have some hundred bytes.
const BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statistic_is_found_by_its_whole_name() {
        let text = "server.state: 0\nserver.state_x: 7\n";
        assert_eq!(stat(text, "server.state"), Some(0));
        assert_eq!(stat(text, "server.stat"), None);
    }

    #[test]
    fn only_connections_of_others_are_waited_for() {
        let text = "listener.0.0.0.0_15006.downstream_cx_active: 2\n\
            listener.0.0.0.0_15006.worker_0.downstream_cx_active: 2\n\
            listener.0.0.0.0_15006.downstream_cx_total: 40\n\
            listener.[__]_15006.downstream_cx_total: 2\n\
            listener.0.0.0.0_15001.downstream_cx_total: 99\n\
            listener.0.0.0.0_15021.downstream_cx_active: 7\n\
            listener.admin.downstream_cx_active: 1\nhttp.x.downstream_cx_active: 5\n";
        assert_eq!(Connections::read(text), Connections { open: 2, arrived: 42 });
    }
}
