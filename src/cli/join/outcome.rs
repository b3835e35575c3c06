//! What a machine that is in the mesh is there, in a sentence and as an event.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::agent::outline;
use crate::cli::progress::seconds;
use crate::cli::status::text;
use crate::config::Settings;
use crate::envoy::served;

/// How a join ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It brought the machine into the mesh.
    Joined,
    /// The machine was there already, from the same source; nothing was changed.
    AlreadyJoined,
}

/// The machine in the mesh.
#[derive(Debug)]
pub(super) struct Outcome {
    name: String,
    namespace: String,
    identity: String,
    address: String,
    until: String,
    /// The services that it serves as; `None` where the proxy cannot tell.
    services: Option<Vec<String>>,
}

impl Outcome {
    /// Puts it together from the daemon's status and what the proxy was told.
    pub(super) async fn find(status: &Value, settings: &Settings) -> Self {
        let services = services(outline::admin_port(settings)).await;
        Self {
            name: text(status, "/workload/name"),
            namespace: text(status, "/workload/namespace"),
            identity: text(status, "/identity/id"),
            address: text(status, "/workload/address"),
            until: text(status, "/identity/not_after"),
            services,
        }
    }

    /// For people.
    pub(super) fn sentence(&self, kind: Kind) -> String {
        let Self { name, identity, address, until, .. } = self;
        let is = match kind {
            Kind::Joined => "is in the mesh",
            Kind::AlreadyJoined => "has already joined, and nothing was changed: it is in the mesh",
        };
        let serves = match self.services.as_deref() {
            None => String::new(),
            Some([]) => "; no service selects it yet".to_owned(),
            Some([one]) => format!("; it serves as 1 service ({one})"),
            Some([one, rest @ ..]) if rest.len() >= NAMED => {
                format!("; it serves as {} services ({one} and others)", rest.len() + 1)
            }
            Some(all) => format!("; it serves as {} services ({})", all.len(), all.join(", ")),
        };
        format!("{name} {is} as {identity} at {address}, with a certificate until {until}{serves}")
    }

    /// For programs.
    pub(super) fn event(&self, kind: Kind, took: Duration) -> Value {
        json!({
            "result": match kind {
                Kind::Joined => "joined",
                Kind::AlreadyJoined => "already-joined",
            },
            "exit": 0,
            "name": self.name,
            "namespace": self.namespace,
            "identity": self.identity,
            "address": self.address,
            "certificate_until": self.until,
            "services": self.services,
            "seconds": seconds(took),
        })
    }
}

/// The services of the machine. istiod tells its proxy of them a moment after it has heard that the
/// machine is healthy, so that none is believed only after a while.
async fn services(admin_port: u16) -> Option<Vec<String>> {
    let end = Instant::now() + SERVICES_TOLD;
    loop {
        let found = served(admin_port).await.ok().flatten();
        let is_final = found.as_ref().is_none_or(|services| !services.is_empty());
        if is_final || Instant::now() >= end {
            return found;
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// How long it takes istiod at most to tell the proxy of the machine's services.
const SERVICES_TOLD: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// As many services as a sentence can name.
const NAMED: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_who_where_until_when_and_as_what() {
        let with = |services: Option<&[&str]>| Outcome {
            name: "vm1".to_owned(),
            namespace: "vms".to_owned(),
            identity: "spiffe://cluster.local/ns/vms/sa/client".to_owned(),
            address: "10.0.0.1".to_owned(),
            until: "2027-01-01T00:00:00Z".to_owned(),
            services: services.map(|all| all.iter().map(ToString::to_string).collect()),
        };
        let end = |services: Option<&[&str]>| {
            let sentence = with(services).sentence(Kind::Joined);
            let (start, end) = sentence.split_once("00:00:00Z").unwrap();
            assert_eq!(
                start,
                "vm1 is in the mesh as spiffe://cluster.local/ns/vms/sa/client at 10.0.0.1, with a certificate until 2027-01-01T"
            );
            end.to_owned()
        };
        assert_eq!(end(None), "");
        assert_eq!(end(Some(&[])), "; no service selects it yet");
        assert_eq!(end(Some(&["a.com"])), "; it serves as 1 service (a.com)");
        assert_eq!(end(Some(&["a", "b"])), "; it serves as 2 services (a, b)");
        assert_eq!(end(Some(&["a", "b", "c", "d"])), "; it serves as 4 services (a and others)");
        let event = with(None).event(Kind::AlreadyJoined, Duration::from_micros(1_234_567));
        assert_eq!(
            (&event["result"], &event["seconds"]),
            (&json!("already-joined"), &json!(1.235))
        );
    }
}
