//! What the daemon's status says of the phases of a join.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cli::exit::Failure;
use crate::cli::progress::{Phase, Progress};
use crate::cli::status::{exit_of, is, text};
use crate::config::{CaptureMode, RegistrationMode, Settings};

/// Where a join stands.
pub(super) enum Verdict {
    /// Not there yet.
    Waiting,
    /// In the mesh.
    Ready,
    /// It cannot get there without somebody's help.
    Failed(Failure),
}

/// The phases that a machine with these settings passes through once its daemon runs.
pub(super) fn phases(settings: &Settings) -> impl Iterator<Item = Phase> {
    let registers = settings.registration.mode != RegistrationMode::None;
    let captures = settings.capture.mode != CaptureMode::None;
    let all = [
        Some(Phase::Identity),
        Some(Phase::ControlPlane),
        registers.then_some(Phase::Registration),
        Some(Phase::Proxy),
        captures.then_some(Phase::Capture),
        Some(Phase::Ready),
    ];
    all.into_iter().flatten()
}

/// Follows a daemon on its way into the mesh.
#[derive(Debug, Default)]
pub(super) struct Follower {
    troubles: BTreeSet<String>,
}

impl Follower {
    /// Shows what a status has new.
    pub(super) fn look(&mut self, status: &Value, progress: &Progress) -> Verdict {
        let ready = is(status, "/ready");
        for phase in [
            Phase::Identity,
            Phase::ControlPlane,
            Phase::Registration,
            Phase::Proxy,
            Phase::Capture,
        ] {
            if !progress.is_open(phase) {
                continue;
            }
            if let Some(words) = reached(status, phase) {
                progress.done(phase, &words);
            } else if ready {
                // It was so a moment ago: the machine would not be ready otherwise.
                progress.done(phase, "is being made anew");
            }
        }
        if ready { Verdict::Ready } else { self.judge(status, progress) }
    }

    /// A trouble that does not pass by itself ends a join; others are shown once.
    fn judge(&mut self, status: &Value, progress: &Progress) -> Verdict {
        // A person has been asked, and may be at lunch.
        let asked = text(status, "/identity/renewal/phase") == "approval";
        let conditions = status.pointer("/conditions").and_then(Value::as_array);
        let conditions = conditions.into_iter().flatten();
        // Tokens are the renewal's means: whether it gets there without them is its own to say.
        for condition in conditions.filter(|one| text(one, "/room") != "credential") {
            let what = text(condition, "/what");
            let hint = condition.pointer("/hint").and_then(Value::as_str).map(str::to_owned);
            if asked && text(condition, "/room") == "identity" {
                if self.troubles.insert(what.clone()) {
                    progress.warn(&format!("{what}: {}", hint.unwrap_or_default()), None);
                }
                continue;
            }
            if text(condition, "/retry") != "soon" {
                let failure = Failure::new(exit_of(status, condition), anyhow::anyhow!("{what}"));
                let failure = failure.hint(hint);
                progress.fail(phase_of(condition), &failure);
                return Verdict::Failed(failure);
            }
            // Its words change with every try where they tell the time.
            if self.troubles.insert(without_digits(&what)) {
                progress.warn(&format!("{what} (it is tried again)"), hint.as_deref());
            }
        }
        Verdict::Waiting
    }
}

/// The words for a phase that is over; `None` while it is not.
fn reached(status: &Value, phase: Phase) -> Option<String> {
    match phase {
        Phase::Identity => is(status, "/identity/valid").then(|| {
            let (id, end) = (text(status, "/identity/id"), text(status, "/identity/not_after"));
            format!("{id}, until {end}")
        }),
        Phase::ControlPlane => (text(status, "/control_plane/phase") == "connected").then(|| {
            let peer = status.pointer("/control_plane/peer").and_then(Value::as_str);
            let peer = peer.map(|peer| format!(" ({peer})")).unwrap_or_default();
            format!("connected to {}{peer}", text(status, "/control_plane/endpoint"))
        }),
        Phase::Registration => is(status, "/registration/registered").then(|| {
            let at = |field| text(status, &format!("/registration/{field}"));
            format!("WorkloadEntry {}/{}", at("namespace"), at("name"))
        }),
        Phase::Proxy => (text(status, "/proxy/phase") == "ready")
            .then(|| format!("Envoy {} is configured", text(status, "/proxy/version"))),
        Phase::Capture => {
            (text(status, "/capture/phase") == "active").then(|| text(status, "/capture/probed"))
        }
        _ => None,
    }
}

fn phase_of(condition: &Value) -> Phase {
    match text(condition, "/room").as_str() {
        "registration" => Phase::Registration,
        "control-plane" | "roots" => Phase::ControlPlane,
        "proxy" | "proxy-binary" | "proxy-configuration" | "secrets" => Phase::Proxy,
        "capture" => Phase::Capture,
        "identity" | "storage" => Phase::Identity,
        _ => Phase::Ready,
    }
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::exit::Exit;
    use crate::cli::progress::Shape;

    #[test]
    fn a_trouble_that_stays_ends_the_join_in_its_own_phase() {
        let progress = Progress::new(Shape::Plain);
        for phase in [Phase::Identity, Phase::Registration, Phase::Ready] {
            progress.begin(phase);
        }
        let mut follower = Follower::default();
        let away = json!({"conditions": [{"room": "identity", "what": "no answer in 3 s", "retry": "soon"}]});
        assert!(matches!(follower.look(&away, &progress), Verdict::Waiting));
        let refused = json!({
            "identity": {"valid": true},
            "conditions": [{"room": "registration", "what": "forbidden", "hint": "a Role", "retry": "later"}],
        });
        let Verdict::Failed(failure) = follower.look(&refused, &progress) else { panic!() };
        assert_eq!((failure.exit, failure.hint.as_deref()), (Exit::Registration, Some("a Role")));
        assert!(!progress.is_open(Phase::Registration) && progress.is_open(Phase::Ready));
    }

    #[test]
    fn a_machine_that_is_ready_leaves_no_phase_open_but_the_last() {
        let progress = Progress::new(Shape::Plain);
        for phase in [Phase::Identity, Phase::ControlPlane, Phase::Ready] {
            progress.begin(phase);
        }
        let ready = json!({"ready": true, "identity": {"valid": true}, "control_plane": {"phase": "connecting"}});
        assert!(matches!(Follower::default().look(&ready, &progress), Verdict::Ready));
        assert!(!progress.is_open(Phase::ControlPlane) && progress.is_open(Phase::Ready));
    }
}
