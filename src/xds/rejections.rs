//! Configuration that Envoy has rejected and not accepted since: what is shown of it, and when it is
//! requested again.
//!
//! Istiod sends a configuration once. One that Envoy rejected, because a port was in use or a
//! directory was missing, is not sent again when the cause is gone. So a stream in which something
//! is rejected is replaced after a pause: at the start of a stream istiod sends everything, in both
//! variants of the protocol, and Envoy tries again what it does not have. Envoy keeps serving what it
//! accepted meanwhile.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::sleep;

use super::session::Session;
use super::upstream::Upstream;
use crate::base::backoff::{Backoff, Retry};
use crate::base::clock;
use crate::base::trouble::Trouble;

/// The last answer of Envoy to configuration of one type, which was a rejection (NACK).
#[derive(Clone, Debug, Serialize)]
pub struct Rejection {
    /// Envoy's reason, which names the resources: an excerpt without secrets.
    pub reason: String,
    /// When Envoy first rejected it, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub since: Option<SystemTime>,
    /// How often Envoy has rejected it since then.
    pub times: u64,
    /// Whether Envoy has asked for this type in the current stream.
    #[serde(skip)]
    pub(super) requested: bool,
}

/// The condition that these rejections are; `None` without any.
pub(super) fn condition(all: &BTreeMap<String, Rejection>) -> Option<Trouble> {
    let since = all.values().filter_map(|one| one.since).min()?;
    let one = |(type_url, rejection): (&String, &Rejection)| {
        format!("{}: {}", short(type_url), rejection.reason)
    };
    let reasons: Vec<String> = all.iter().map(one).collect();
    Some(Trouble {
        what: format!("Envoy rejected configuration from istiod: {}", reasons.join("; ")),
        hint: Some(all.values().find_map(|one| hint(&one.reason)).unwrap_or_else(default_hint)),
        // It is requested again, and the cause may be removed at any time.
        retry: Retry::Soon,
        since,
    })
}

/// The name of a type, such as `Listener`.
pub(super) fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}

/// What to do about a reason. Nothing but the hint depends on the text.
fn hint(reason: &str) -> Option<String> {
    let directory = directory(reason);
    if reason.contains("Address already in use") {
        return Some("another program uses this port: `ss -ltnp` shows which".to_owned());
    }
    match directory {
        Some(directory) if reason.contains("Read-only file system") => Some(format!(
            "the sandbox of Envoy's unit forbids it: `systemctl edit vm-agent-proxy@.service`, add \
             `[Service]` and `ReadWritePaths=-{directory}`, then `vm-agent proxy restart`"
        )),
        Some(directory) if reason.contains("No such file") => {
            Some(format!("create {directory}, and let the proxy's user write to it"))
        }
        Some(directory) if reason.contains("Permission denied") => {
            Some(format!("let the proxy's user (setting proxy.user) write to {directory}"))
        }
        _ => None,
    }
}

/// The directory of the file that Envoy could not open.
fn directory(reason: &str) -> Option<String> {
    let (_, rest) = reason.split_once("unable to open file '")?;
    let (path, _) = rest.split_once('\'')?;
    Path::new(path).parent().map(|directory| directory.display().to_string())
}

fn default_hint() -> String {
    "look at what configures this proxy: `kubectl get envoyfilter,telemetry,wasmplugin,proxyconfig \
     -A`, and `meshConfig`"
        .to_owned()
}

/// Waits until a new stream is due for what Envoy has rejected, and makes the connection for it
/// beforehand. A machine that is leaving gets none: Envoy shall keep what it has.
pub(super) async fn resubscription<U: Upstream>(session: &Session<U>) {
    let ledger = &session.shared.ledger;
    let mut state = ledger.watch();
    loop {
        if state.borrow_and_update().rejections.is_empty() {
            session.shared.accepted();
        }
        if state.wait_for(|state| !state.rejections.is_empty()).await.is_err() {
            return pending().await;
        }
        let pause = session.shared.rejection_pause();
        let renewal = async {
            sleep(pause).await;
            // Of a type that Envoy does not ask for any more it will not accept anything.
            ledger.forget_unrequested();
            session.make_spare().await;
        };
        let is_due = tokio::select! {
            () = renewal => true,
            _ = state.wait_for(|state| state.rejections.is_empty()) => false,
        };
        if is_due && !state.borrow().rejections.is_empty() && !session.shared.drain_hold.holds() {
            return;
        }
    }
}

/// The pauses between streams for a rejected configuration: each stream is a full push of istiod.
pub(super) fn pauses() -> Backoff {
    Backoff::new(Duration::from_secs(5), Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_names_the_directory_or_the_command() {
        let of = |why: &str| {
            let reason = format!("x: unable to open file '/var/log/istio/a.log': {why}");
            hint(&reason).unwrap()
        };
        assert!(of("No such file or directory").starts_with("create /var/log/istio,"));
        assert!(of("Read-only file system").contains("ReadWritePaths=-/var/log/istio"));
        assert!(of("Permission denied").contains("proxy.user"));
        assert!(
            hint("cannot bind '0.0.0.0:15006': Address already in use").unwrap().contains("ss")
        );
        assert_eq!(hint("unknown"), None);
        assert_eq!(short("type.googleapis.com/envoy.config.listener.v3.Listener"), "Listener");
    }
}
