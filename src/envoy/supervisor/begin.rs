//! How a supervision begins: with a process that an earlier agent left, or with a new one.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::{SupervisionError, Supervisor, Traffic};
use crate::base::fsio;
use crate::envoy::fingerprint::{Fingerprint, Fit};
use crate::envoy::note::{Note, Noted};
use crate::envoy::output::Output;
use crate::envoy::process::{BOOTSTRAP, Process};
use crate::envoy::{ConfigCounts, ProxyPhase, leftover};

impl Supervisor {
    /// Goes on with the process that is there, or starts one.
    pub(super) async fn begin(&mut self) -> Result<Process, SupervisionError> {
        let fingerprint = Fingerprint::of(&self.config);
        let note = Note::new(&self.config.directory);
        let until = Instant::now() + leftover::NOTE_LIMIT;
        loop {
            if let Some(noted) = note.living() {
                if let Some((process, older)) = adopt(&noted, &fingerprint) {
                    self.output()?;
                    self.adopted(&process, &noted, older);
                    return Ok(process);
                }
                let limit = self.config.termination_drain;
                leftover::end(&self.config.directory, &noted, Some(self.admin()), limit).await;
            }
            if let Some(process) = self.start(&fingerprint).await? {
                return Ok(process);
            }
            if Instant::now() > until {
                let directory = self.config.directory.display().to_string();
                return Err(SupervisionError::Unknown { directory });
            }
            // An agent has died between its launcher's start and its launcher's note.
            sleep(LOOK).await;
        }
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

/// The process, where we can go on with it, and the version of the agent that made its bootstrap
/// where that is not ours.
fn adopt(noted: &Noted, ours: &Fingerprint) -> Option<(Process, Option<String>)> {
    let theirs = noted.fingerprint.as_ref()?;
    let older = match ours.fits(theirs) {
        Fit::Same => None,
        Fit::Older => Some(theirs.version.clone()),
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
