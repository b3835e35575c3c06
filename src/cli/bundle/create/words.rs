//! What an operator is told of a bundle that was made.

use std::path::Path;
use std::time::Duration;

use super::Args;
use crate::base::clock::rfc3339;
use crate::cli::screen::{self, Paint, paint};
use crate::operator::{Made, Order, Registration};

pub(super) fn tell(args: &Args, order: &Order, made: &Made) {
    let warn = |words: &str| screen::say(&format!("{} {words}", paint(Paint::Warn, "!")));
    for warning in &made.warnings {
        warn(warning);
    }
    let group = &order.group;
    let machines = match (&order.machines.name, order.machines.uses) {
        (Some(name), _) => format!("the machine {name}"),
        (None, Some(uses)) => format!("{uses} machines"),
        (None, None) => "any number of machines".to_owned(),
    };
    let end = rfc3339(made.expires_at);
    screen::say(&format!(
        "{} bundle for {machines} of WorkloadGroup {}/{}, good until {end}",
        paint(Paint::Good, "✓"),
        group.namespace,
        group.name
    ));
    let asked = crate::base::clock::parse_rfc3339(&made.bundle.metadata.created)
        .and_then(|made_at| made_at.checked_add(order.life));
    let difference = asked.map(|asked| {
        let shorter = asked.duration_since(made.expires_at);
        shorter.unwrap_or_else(|longer| longer.duration())
    });
    if difference.is_some_and(|difference| difference > TOLERANCE) {
        warn(&format!("the API server did not grant the {:?} that --ttl asks for", order.life));
    }
    if let Registration::Kubernetes { server, .. } = &order.registration {
        let account = format!("{}/{}", group.namespace, group.service_account);
        screen::say(&format!(
            "  its machines write their WorkloadEntries at {server} as {account}, and may do nothing else there"
        ));
        let host = server.trim_start_matches("https://");
        if ["127.", "localhost", "[::1]"].iter().any(|start| host.starts_with(start)) {
            warn(
                "that address is this machine's own: name the one that others reach with --api-server URL",
            );
        }
        if args.no_policy {
            warn(
                "without the policy they can also change entries of other accounts in the namespace",
            );
        }
    }
    screen::say("  whoever has the file can join until then; Kubernetes does not count uses");
    let secret = &made.bundle.metadata.secret;
    if !secret.is_empty() {
        let namespace = &group.namespace;
        screen::say(&format!(
            "  to take its tokens back: kubectl -n {namespace} delete secret {secret}"
        ));
    }
    let file = if args.output == Path::new("-") {
        "bundle.yaml".into()
    } else {
        args.output.display().to_string()
    };
    screen::say(&format!("  on each machine: vm-agent join {file}"));
}

/// A server's clock and ours may differ by this without a word.
const TOLERANCE: Duration = Duration::from_secs(120);
