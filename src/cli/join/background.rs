//! The join that has systemd run the daemon, and watches it through its status.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, interval, timeout};

use super::follow::{Follower, Verdict};
use super::foreground::UNDONE;
use super::outcome::Kind;
use super::{Job as Join, LOOK, attend};
use crate::capture::Capture;
use crate::cli::exit::{Exit, Failure};
use crate::cli::interrupt::Interrupts;
use crate::cli::progress::Phase;
use crate::cli::service::{Service, UNIT};
use crate::cli::status::{self, text};
use crate::cli::{capture, settings};
use crate::join::Layout;

/// A join by the service.
pub(super) struct Job<'a> {
    pub(super) join: &'a Join<'a>,
    pub(super) service: &'a Service,
    /// What was placed; `None` where everything was there and the service runs with it.
    pub(super) placed: Option<Layout>,
}

/// What the service was, to be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Before {
    enabled: bool,
    active: bool,
    /// Whether the machine was in the mesh.
    ready: bool,
}

/// What puts a service back as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    Disable,
    Restart,
    Stop,
}

impl Before {
    fn look(join: &Join<'_>, service: &Service) -> Self {
        let active = service.last_run().is_some_and(|run| run.is_active());
        let ready = active && status::ask(join.global).is_ok_and(|now| status::is(&now, "/ready"));
        Self { enabled: service.is_enabled(), active, ready }
    }

    /// What has to be done before the files are taken back: nothing must go on trying with them. A
    /// machine that was in the mesh is not taken out of it.
    fn first(self) -> Vec<Back> {
        let disable = (!self.enabled).then_some(Back::Disable);
        let stop = (!self.active).then_some(Back::Stop);
        disable.into_iter().chain(stop).collect()
    }

    /// What has to be done afterwards.
    fn then(self) -> Option<Back> {
        self.active.then_some(Back::Restart)
    }
}

/// How following a daemon ended.
enum End {
    /// It brought the machine into the mesh; its status.
    Ready(Value),
    /// It has not yet.
    TimedOut,
}

impl Job<'_> {
    /// Brings the machine into the mesh, or puts everything back. What only takes longer goes on.
    pub(super) async fn run(self, interrupts: &mut Interrupts) -> Result<(), Failure> {
        let before = Before::look(self.join, self.service);
        let ended = match self.start(before) {
            Ok(old) => {
                let limit = self.join.args.timeout;
                let follow = async {
                    let ended = timeout(limit, Box::pin(self.follow(old))).await;
                    ended.unwrap_or(Ok(End::TimedOut))
                };
                attend(self.join.progress, interrupts, follow).await
            }
            Err(failure) => Err(failure),
        };
        match ended {
            Ok(End::Ready(status)) => {
                self.join.succeed(&status, self.kind()).await;
                Ok(())
            }
            Ok(End::TimedOut) => Err(self.timed_out()),
            Err(failure) => {
                self.undo(before).await;
                Err(failure)
            }
        }
    }

    /// Has the service run with what was placed; returns the process of the daemon that it replaces.
    fn start(&self, before: Before) -> Result<Option<u64>, Failure> {
        self.join.progress.begin(Phase::Service);
        if !before.enabled {
            self.service.enable()?;
        }
        if self.placed.is_none() {
            return Ok(None);
        }
        let old = status::ask(self.join.global).ok().as_ref().and_then(pid);
        self.service.forget_failure();
        self.service.restart()?;
        Ok(old)
    }

    /// Follows the daemon until the machine is in the mesh.
    async fn follow(&self, old: Option<u64>) -> Result<End, Failure> {
        let mut follower = Follower::default();
        let mut look = interval(LOOK);
        let mut asked = Instant::now();
        loop {
            look.tick().await;
            match status::ask(self.join.global) {
                // Until it has ended, the daemon from before answers.
                Ok(now) if old.is_none() || pid(&now) != old => {
                    self.has_started(&now);
                    match follower.look(&now, self.join.progress) {
                        Verdict::Ready => return Ok(End::Ready(now)),
                        Verdict::Waiting => {}
                        Verdict::Failed(failure) => return Err(failure),
                    }
                }
                Err(failure) if failure.exit == Exit::Host => return Err(failure),
                _ if asked.elapsed() >= GLANCE => {
                    asked = Instant::now();
                    self.is_alive()?;
                }
                _ => {}
            }
        }
    }

    fn has_started(&self, status: &Value) {
        let progress = self.join.progress;
        if progress.is_open(Phase::Service) {
            let pid = text(status, "/pid");
            progress.done(Phase::Service, &format!("{UNIT} runs, pid {pid}, and at each boot"));
            self.join.begin_the_rest();
        }
    }

    fn kind(&self) -> Kind {
        match &self.placed {
            Some(_) => Kind::Joined,
            None => Kind::AlreadyJoined,
        }
    }

    /// A service that has ended says why in the journal.
    fn is_alive(&self) -> Result<(), Failure> {
        let Some(run) = self.service.last_run() else { return Ok(()) };
        let Some(end) = run.end() else { return Ok(()) };
        let words = self.service.words(&run);
        let said: String = words.lines().map(|line| format!("\n  | {line}")).collect();
        let error = anyhow::anyhow!("the service {UNIT} does not stay up: {end}{said}");
        let hint = format!("`journalctl -u {UNIT}` shows more");
        let failure = Failure::new(Exit::of_status(run.status), error).hint(hint);
        self.join.progress.fail(Phase::Service, &failure);
        Err(failure)
    }

    /// The files and the service as they were before. What cannot be put back is said.
    async fn undo(self, before: Before) {
        let Some(layout) = self.placed else { return };
        let progress = self.join.progress;
        progress.remark("  taking back what was done …");
        let mut failures: Vec<Failure> = Vec::new();
        let back = |step: &Back| match step {
            Back::Disable => self.service.disable(),
            Back::Restart => self.service.restart(),
            Back::Stop => self.service.stop(),
        };
        failures.extend(before.first().iter().filter_map(|step| back(step).err()));
        if !before.active {
            // A closed fail policy is for machines that have joined.
            let rules = Capture::new(settings::paths(self.join.global).capture_journal());
            failures.extend(rules.remove().await.err().map(capture::failure));
        }
        let failed = status::ask(self.join.global).ok().as_ref().and_then(pid);
        layout.undo();
        failures.extend(before.then().iter().filter_map(|step| back(step).err()));
        if failures.is_empty() {
            if before.ready && !is_back(self.join, failed).await {
                return progress.undone(NOT_YET);
            }
            return progress.undone(UNDONE);
        }
        for failure in failures {
            progress.warn(&format!("not taken back: {:#}", failure.error), None);
        }
    }

    fn timed_out(&self) -> Failure {
        let limit = self.join.args.timeout;
        let mut hint = "`vm-agent status` and `journalctl -u vm-agent` show more".to_owned();
        let so_far = status::ask(self.join.global).ok().map_or_else(String::new, |status| {
            let said = |at: &str| status.pointer(at).and_then(Value::as_str);
            if let Some(known) = said("/conditions/0/hint") {
                known.clone_into(&mut hint);
            }
            let what = said("/conditions/0/what").map(|what| format!(" ({what})"));
            format!("; it is {}{}", text(&status, "/phase"), what.unwrap_or_default())
        });
        let error = anyhow::anyhow!(
            "the machine is not ready after {limit:?}{so_far}; the service goes on trying"
        );
        Failure::new(Exit::NotReady, error).hint(hint)
    }
}

/// Waits until the machine is in the mesh again, with another agent than the one that failed.
async fn is_back(join: &Join<'_>, failed: Option<u64>) -> bool {
    let ready = async {
        let mut look = interval(LOOK);
        loop {
            look.tick().await;
            join.progress.tick();
            let now = status::ask(join.global);
            if now.is_ok_and(|now| pid(&now) != failed && status::is(&now, "/ready")) {
                return;
            }
        }
    };
    timeout(BACK_LIMIT, ready).await.is_ok()
}

fn pid(status: &Value) -> Option<u64> {
    status.pointer("/pid").and_then(Value::as_u64)
}

/// The agent from before has its certificate and its proxy; this is for a machine under load.
const BACK_LIMIT: Duration = Duration::from_secs(30);
const NOT_YET: &str = "the join is undone: files and service are as before, but the machine is not \
                       ready yet; see `vm-agent status`";
/// How often systemd is asked about a daemon that does not answer.
const GLANCE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_put_back_as_it_was() {
        let back = |enabled, active| {
            let before = Before { enabled, active, ready: active };
            (before.first(), before.then())
        };
        assert_eq!(back(false, false), (vec![Back::Disable, Back::Stop], None));
        assert_eq!(back(true, true), (Vec::new(), Some(Back::Restart)), "it stays in the mesh");
        assert_eq!(back(true, false), (vec![Back::Stop], None));
        assert_eq!(back(false, true), (vec![Back::Disable], Some(Back::Restart)));
    }
}
