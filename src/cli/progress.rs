//! The phases of a join, shown while they happen: redrawn in place on a terminal, as plain lines
//! elsewhere, or as one JSON event a line for programs.

use std::cell::RefCell;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::exit::Failure;
use super::screen::{self, Paint, paint};
use crate::base::trouble::chain;

/// A phase of a join, in the order in which they begin. Those from [`Phase::Identity`] on run side
/// by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// What must be so before anything changes.
    Checks,
    /// Configuration, roots and tokens are placed.
    Files,
    /// The service runs, and does so after each boot.
    Service,
    /// The first certificate.
    Identity,
    /// The stream to istiod.
    ControlPlane,
    /// The WorkloadEntry.
    Registration,
    /// Envoy has its configuration.
    Proxy,
    /// The redirect rules.
    Capture,
    /// All of it.
    Ready,
}

impl Phase {
    /// Its name in events.
    fn key(self) -> &'static str {
        match self {
            Self::Checks => "checks",
            Self::Files => "files",
            Self::Service => "service",
            Self::Identity => "identity",
            Self::ControlPlane => "control-plane",
            Self::Registration => "registration",
            Self::Proxy => "proxy",
            Self::Capture => "capture",
            Self::Ready => "ready",
        }
    }

    /// Its name for people.
    fn name(self) -> &'static str {
        if self == Self::ControlPlane { "control plane" } else { self.key() }
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Events on standard output.
    Json,
    /// Lines, and below them what is being done, on standard error.
    Live,
    /// Lines on standard error.
    Plain,
}

/// Shows the phases.
#[derive(Debug)]
pub(super) struct Progress {
    shape: Shape,
    started: Instant,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Phases that have begun and not ended.
    open: Vec<(Phase, Instant)>,
    /// Whether one of them was said to have failed.
    failed: bool,
    /// Whether what was changed was taken back.
    undone: bool,
    /// Turns of the sign of life.
    turns: usize,
}

impl Progress {
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape, started: Instant::now(), state: RefCell::default() }
    }

    /// How long it has taken until now.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// A phase begins.
    pub(super) fn begin(&self, phase: Phase) {
        self.state.borrow_mut().open.push((phase, Instant::now()));
        self.event(&json!({"phase": phase.key(), "state": "started"}));
        self.draw();
    }

    /// Whether a phase has begun and not ended.
    pub(super) fn is_open(&self, phase: Phase) -> bool {
        self.state.borrow().open.iter().any(|(open, _)| *open == phase)
    }

    /// A phase that is open has ended well.
    pub(super) fn done(&self, phase: Phase, words: &str) {
        let Some(took) = self.close(phase) else { return };
        self.event(&json!({
            "phase": phase.key(), "state": "done", "seconds": seconds(took), "detail": words,
        }));
        let mark = paint(Paint::Good, "✓");
        self.line(&format!("{mark} {:<15}{words} ({:.2} s)", phase.name(), seconds(took)));
    }

    /// One of the checks of a phase is good.
    pub(super) fn note(&self, check: &str, words: &str) {
        let phase = self.current();
        self.event(&json!({"phase": phase, "state": "noted", "check": check, "detail": words}));
        self.line(&format!("{} {check:<15}{words}", paint(Paint::Good, "✓")));
    }

    /// Something is strange, or does not work yet.
    pub(super) fn warn(&self, words: &str, hint: Option<&str>) {
        let phase = self.current();
        self.event(&json!({"phase": phase, "state": "warned", "detail": words, "hint": hint}));
        let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        self.line(&format!("{} {words}{hint}", paint(Paint::Warn, "!")));
    }

    /// A phase has failed, and with it the join.
    pub(super) fn fail(&self, phase: Phase, failure: &Failure) {
        let Some(took) = self.close(phase) else { return };
        self.state.borrow_mut().failed = true;
        self.event(&json!({
            "phase": phase.key(), "state": "failed", "seconds": seconds(took),
            "detail": chain(failure.error.as_ref()), "hint": failure.hint,
        }));
        let mark = paint(Paint::Bad, "✗");
        self.line(&format!("{mark} {:<15}failed ({:.2} s)", phase.name(), seconds(took)));
    }

    /// What was changed has been taken back.
    pub(super) fn undone(&self, words: &str) {
        self.state.borrow_mut().undone = true;
        self.line(&format!("{} {words}", paint(Paint::Warn, "!")));
    }

    /// Says something that belongs to no phase.
    pub(super) fn remark(&self, words: &str) {
        if self.shape != Shape::Json {
            self.line(words);
        }
    }

    /// The end. Of a failure that no phase has been blamed for, the first open one is the cause.
    pub(super) fn end(&self, ended: Result<&Value, &Failure>) {
        let first = self.state.borrow().open.first().map(|(phase, _)| *phase);
        match ended {
            Ok(result) => self.event(result),
            Err(failure) => {
                if let Some(phase) = first.filter(|_| !self.state.borrow().failed) {
                    self.fail(phase, failure);
                }
                self.event(&json!({
                    "result": "failed", "exit": failure.exit as u8,
                    "error": chain(failure.error.as_ref()), "hint": failure.hint,
                    "undone": self.state.borrow().undone, "seconds": seconds(self.elapsed()),
                }));
            }
        }
        self.state.borrow_mut().open.clear();
        self.draw();
    }

    /// Turns the sign of life.
    pub(super) fn tick(&self) {
        let turns = self.state.borrow().turns.wrapping_add(1);
        self.state.borrow_mut().turns = turns;
        self.draw();
    }

    fn close(&self, phase: Phase) -> Option<Duration> {
        let mut state = self.state.borrow_mut();
        let at = state.open.iter().position(|(open, _)| *open == phase)?;
        let (_, begun) = state.open.remove(at);
        Some(begun.elapsed())
    }

    /// The phase that what happens now belongs to.
    fn current(&self) -> Option<&'static str> {
        self.state.borrow().open.first().map(|(phase, _)| phase.key())
    }

    fn event(&self, event: &Value) {
        if self.shape == Shape::Json {
            // Who does not read any more does not stop a join.
            drop(screen::out(&event.to_string()));
        }
    }

    fn line(&self, line: &str) {
        match self.shape {
            Shape::Json => {}
            Shape::Plain => screen::say(line),
            Shape::Live => {
                screen::draw("");
                screen::say(line);
                self.draw();
            }
        }
    }

    fn draw(&self) {
        if self.shape == Shape::Live {
            screen::draw(&self.state.borrow().sign_of_life());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shape == Shape::Live {
            screen::draw("");
        }
    }
}

impl State {
    /// What is being done now, and for how long.
    fn sign_of_life(&self) -> String {
        let Some((_, begun)) = self.open.first() else { return String::new() };
        let sign = SIGNS.get(self.turns % SIGNS.len()).copied().unwrap_or_default();
        // The whole is the sum of the others.
        let parts = self.open.iter().filter(|(phase, _)| *phase != Phase::Ready);
        let mut names: Vec<_> = parts.map(|(phase, _)| phase.name()).collect();
        if names.is_empty() {
            names.push(Phase::Ready.name());
        }
        format!("{sign} {} … {:.1} s", names.join(", "), seconds(begun.elapsed()))
    }
}

/// Seconds with three digits behind the point.
pub(super) fn seconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1000.0).round() / 1000.0
}

const SIGNS: [&str; 4] = ["◐", "◓", "◑", "◒"];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_sign_of_life_names_what_is_awaited_and_since_when() {
        let progress = Progress::new(Shape::Plain);
        assert_eq!(progress.state.borrow().sign_of_life(), "");
        for phase in [Phase::Identity, Phase::ControlPlane, Phase::Ready] {
            progress.begin(phase);
        }
        tokio::time::advance(Duration::from_millis(1250)).await;
        let shown = progress.state.borrow().sign_of_life();
        assert_eq!(shown, "◐ identity, control plane … 1.2 s");
        progress.done(Phase::Identity, "there");
        progress.done(Phase::ControlPlane, "there");
        progress.tick();
        assert_eq!(progress.state.borrow().sign_of_life(), "◓ ready … 1.2 s");
        assert!(progress.is_open(Phase::Ready) && !progress.is_open(Phase::Identity));
    }
}
