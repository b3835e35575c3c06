//! What an operator is told of a bundle that was made.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::Args;
use crate::base::clock::rfc3339;
use crate::cli::screen::{self, Paint, paint};
use crate::operator::{Made, Order, Registration};

pub(super) fn tell(args: &Args, order: &Order, made: &Made) {
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
    rights(args, order);
    if args.output == Path::new("-")
        && std::io::stdout().as_fd().try_clone_to_owned().is_ok_and(is_open)
    {
        warn("the file on standard output can be read by others: chmod 600 it, or use -o FILE");
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

/// What its machines may do.
fn rights(args: &Args, order: &Order) {
    let group = &order.group;
    let Registration::Kubernetes { server, .. } = &order.registration else { return };
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
    if group.service_account == "default" {
        warn(
            "Pods of the namespace without a service account of their own have this one, and \
             with it the same rights: give the WorkloadGroup its own in spec.template.serviceAccount",
        );
    }
    if args.no_policy {
        warn("without the policy they can also change entries of other accounts in the namespace");
    }
}

fn warn(words: &str) {
    screen::say(&format!("{} {words}", paint(Paint::Warn, "!")));
}

/// Whether it is a file that others than its owner can read.
fn is_open(output: OwnedFd) -> bool {
    let about = File::from(output).metadata();
    about.is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o077 != 0)
}

/// A server's clock and ours may differ by this without a word.
const TOLERANCE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_can_read_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |mode| {
            let file = file.as_file();
            file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            is_open(file.as_fd().try_clone_to_owned().unwrap())
        };
        assert!(open(0o644) && open(0o640) && !open(0o600));
        assert!(!is_open(File::open("/dev/null").unwrap().into()));
    }
}
