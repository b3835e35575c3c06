//! The steps of a join, shown while they happen.

use std::collections::BTreeSet;

use serde_json::Value;

use super::exit::{Exit, Failure};
use super::screen::{self, Paint, paint};
use super::status::{span, text};

/// Where a join stands.
pub(super) enum Verdict {
    /// Not there yet.
    Waiting,
    /// In the mesh.
    Ready,
    /// It cannot get there without somebody's help.
    Failed(Failure),
}

/// Shows each step once.
#[derive(Debug, Default)]
pub(super) struct Progress {
    shown: Vec<&'static str>,
    troubles: BTreeSet<String>,
}

impl Progress {
    /// Says that a step is done.
    pub(super) fn done(&mut self, step: &'static str, words: &str) {
        if !self.shown.contains(&step) {
            self.shown.push(step);
            screen::say(&format!("{} {step:<15}{words}", paint(Paint::Good, "✓")));
        }
    }

    /// Says what is strange.
    pub(super) fn warn(&mut self, words: &str) {
        screen::say(&format!("{} {words}", paint(Paint::Warn, "!")));
    }

    /// Shows what the daemon's status has new.
    pub(super) fn update(&mut self, status: &Value) -> Verdict {
        let is = |at: &str| status.pointer(at).and_then(Value::as_bool) == Some(true);
        if is("/identity/valid") {
            let left = status.pointer("/identity/expires_in").and_then(Value::as_i64);
            let left = left.map(span).unwrap_or_default();
            self.done(
                "certificate",
                &format!("{}, valid for {left}", text(status, "/identity/id")),
            );
        }
        if is("/registration/registered") {
            let namespace = text(status, "/registration/namespace");
            let name = text(status, "/registration/name");
            self.done("registration", &format!("WorkloadEntry {namespace}/{name}"));
        }
        if text(status, "/proxy/phase") == "ready" {
            self.done("proxy", &format!("Envoy {} is configured", text(status, "/proxy/version")));
        }
        if text(status, "/capture/phase") == "active" {
            self.done("capture", &text(status, "/capture/probed"));
        }
        if is("/ready") {
            return Verdict::Ready;
        }
        self.judge(status)
    }

    /// A trouble that does not pass by itself ends a join; others are shown once.
    fn judge(&mut self, status: &Value) -> Verdict {
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
                    self.warn(&format!("{what}: {}", hint.unwrap_or_default()));
                }
                continue;
            }
            if text(condition, "/retry") != "soon" {
                let error = anyhow::anyhow!("{what}");
                return Verdict::Failed(Failure::new(exit_of(condition), error).hint(hint));
            }
            // Its words change with every try where they tell the time.
            if self.troubles.insert(without_digits(&what)) {
                let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
                self.warn(&format!("{what} (it is tried again){hint}"));
            }
        }
        Verdict::Waiting
    }
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

fn exit_of(condition: &Value) -> Exit {
    let what = text(condition, "/what");
    match text(condition, "/room").as_str() {
        "identity" if what.contains("token") && !what.contains("certificate of") => {
            Exit::Credential
        }
        "registration" => Exit::Registration,
        "proxy" => Exit::Proxy,
        "capture" | "storage" => Exit::Host,
        "control-plane" if what.contains("WorkloadGroup") => Exit::Registration,
        _ => Exit::ControlPlane,
    }
}
