//! How a supervision begins: with a process that an earlier agent left, or with a new one.

use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::{Event, SupervisionError, Supervisor, Traffic, nobody};
use crate::base::fsio;
use crate::envoy::fingerprint::{Fingerprint, Fit};
use crate::envoy::handle::{End, How, Wish};
use crate::envoy::note::{Note, Noted};
use crate::envoy::output::Output;
use crate::envoy::process::{BOOTSTRAP, Process};
use crate::envoy::trial::trial;
use crate::envoy::{ConfigCounts, ProxyPhase, leftover};

/// How a supervision began.
pub(super) enum Begun {
    /// With a process.
    Process(Process),
    /// Not at all: somebody wanted something else meanwhile.
    Instead(Event),
}

impl Supervisor {
    /// Goes on with the process that is there, or starts one. What takes long is given up when
    /// somebody wants the supervision to end.
    pub(super) async fn begin(&mut self) -> Result<Begun, SupervisionError> {
        let fingerprint = Fingerprint::of(&self.config);
        let note = Note::new(&self.config.directory);
        let until = Instant::now() + leftover::NOTE_LIMIT;
        loop {
            if let Some(noted) = note.living() {
                if let Some((process, older)) = adopt(&noted, &fingerprint) {
                    self.output()?;
                    self.replacement.started(&self.config);
                    self.adopted(&process, &noted, older);
                    return Ok(Begun::Process(process));
                }
                if let Some(begun) = self.replace(&noted).await? {
                    return Ok(begun);
                }
            }
            if let Some(process) = self.start(&fingerprint).await? {
                return Ok(Begun::Process(process));
            }
            if Instant::now() > until {
                let directory = self.config.directory.display().to_string();
                return Err(SupervisionError::Unknown { directory });
            }
            // An agent has died between its launcher's start and its launcher's note.
            let pause = sleep(LOOK);
            if let Err(event) = unless_told(&mut self.wishes, &mut self.traffic, pause).await {
                return Ok(Begun::Instead(event));
            }
        }
    }

    /// Ends a process that was started with something else; `None` when it has ended. It goes on
    /// where what would be started in its place fails its trial.
    async fn replace(&mut self, noted: &Noted) -> Result<Option<Begun>, SupervisionError> {
        if self.is_compatible(noted) {
            let trial = trial(&self.config);
            match unless_told(&mut self.wishes, &mut self.traffic, trial).await {
                Err(event) => return Ok(Some(Begun::Instead(event))),
                Ok(Ok(version)) => self.accept(Some(version)),
                Ok(Err(error)) => {
                    if let Ok(Some(process)) = Process::adopt(noted) {
                        self.output()?;
                        self.adopted(&process, noted, None);
                        self.refuse(error);
                        self.replacement.postponed(&self.config);
                        return Ok(Some(Begun::Process(process)));
                    }
                }
            }
        }
        let (directory, limit) = (self.config.directory.clone(), self.config.termination_drain);
        let ended = leftover::end(&directory, noted, Some(self.admin()), limit);
        let Err(event) = unless_told(&mut self.wishes, &mut self.traffic, ended).await else {
            return Ok(None);
        };
        // A stop does not wait for its drain; the next agent would end it, too.
        if matches!(event, Event::Ended(_)) {
            leftover::terminate(noted).await;
        }
        Ok(Some(Begun::Instead(event)))
    }

    /// Whether a process that was started with something else can be supervised by us: it has our
    /// admin port, and the group by which redirect rules know it.
    fn is_compatible(&self, noted: &Noted) -> bool {
        let ours =
            self.config.user.map_or_else(|| rustix::process::getegid().as_raw(), |user| user.gid);
        noted.fingerprint.is_some()
            && noted.group() == Some(ours)
            && leftover::admin_of(&self.config.directory).map(|admin| admin.port)
                == Some(self.config.admin_port)
    }

    /// Starts one; `None` when another one runs.
    async fn start(
        &mut self,
        fingerprint: &Fingerprint,
    ) -> Result<Option<Process>, SupervisionError> {
        let output = self.output()?.for_process().map_err(SupervisionError::Output)?;
        let Some(output) = output else { return Ok(None) };
        let bootstrap = self.config.bootstrap.to_string();
        fsio::replace(&self.config.directory.join(BOOTSTRAP), bootstrap.as_bytes(), fsio::PUBLIC)
            .map_err(SupervisionError::Bootstrap)?;
        let process = Process::start(&self.config, &fingerprint.to_string(), output).await;
        let process = process.map_err(SupervisionError::Start)?;
        tracing::info!(pid = process.pid, "Started the proxy.");
        self.replacement.started(&self.config);
        self.traffic = match self.traffic {
            Traffic::Out | Traffic::OutOf => Traffic::OutOf,
            Traffic::AsFound | Traffic::In | Traffic::Into => Traffic::In,
        };
        self.stands(&process, self.clock.now(), None);
        Ok(Some(process))
    }

    fn adopted(&mut self, process: &Process, noted: &Noted, older: Option<String>) {
        tracing::info!(pid = process.pid, "Adopted the running proxy.");
        if let Some(version) = &older {
            tracing::warn!(
                version,
                "It has the bootstrap of another version of the agent, until it is restarted."
            );
        }
        self.traffic = Traffic::AsFound;
        let now = self.clock.now();
        let started = noted.age().and_then(|age| now.checked_sub(age));
        self.stands(process, started.unwrap_or(now), older);
    }

    fn stands(&self, process: &Process, started_at: SystemTime, older: Option<String>) {
        self.state.send_modify(|state| {
            state.phase = ProxyPhase::Starting;
            state.pid = Some(process.pid);
            state.origin = process.origin();
            state.bootstrap_of = older;
            state.started_at = Some(started_at);
            state.ready_since = None;
            // Each process is asked for its own.
            state.version = None;
            state.installed_version = None;
            state.rejected_replacement = None;
            state.config = ConfigCounts::default();
        });
    }

    fn output(&mut self) -> Result<&Output, SupervisionError> {
        let output = match self.output.take() {
            Some(output) => output,
            None => Output::open(&self.config.directory, &self.tasks)
                .map_err(SupervisionError::Output)?,
        };
        Ok(self.output.insert(output))
    }
}

/// Waits for `future`, unless somebody wants the supervision to end before.
async fn unless_told<T>(
    wishes: &mut mpsc::Receiver<Wish>,
    traffic: &mut Traffic,
    future: impl Future<Output = T>,
) -> Result<T, Event> {
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            done = &mut future => return Ok(done),
            wish = wishes.recv() => match wish {
                // What is being started is what a restart would start.
                Some(Wish::End(End { how: How::Restart { .. }, .. })) => {}
                Some(Wish::End(end)) => return Err(Event::Ended(end)),
                Some(Wish::Release(done)) => return Err(Event::Released(done)),
                Some(wish) => traffic.direct(&wish),
                None => return Err(Event::Ended(nobody())),
            },
        }
    }
}

/// The process, where we can go on with it, and the version of the agent that made its bootstrap
/// where that is not ours.
fn adopt(noted: &Noted, ours: &Fingerprint) -> Option<(Process, Option<String>)> {
    let theirs = noted.fingerprint.as_ref()?;
    let older = match ours.fits(theirs) {
        Fit::Same => None,
        Fit::Older => Some(theirs.version.clone()).filter(|version| *version != ours.version),
        Fit::Other => return None,
    };
    match Process::adopt(noted) {
        Ok(process) => Some((process?, older)),
        Err(error) => {
            tracing::warn!(%error, pid = noted.pid, "The running proxy cannot be adopted.");
            None
        }
    }
}

const LOOK: Duration = Duration::from_millis(25);
