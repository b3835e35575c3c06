//! How a supervision begins: with a process that an earlier agent left, or with a new one.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::{SupervisionError, Supervisor, Traffic};
use crate::base::fsio;
use crate::envoy::note::{Note, Noted};
use crate::envoy::output::Output;
use crate::envoy::process::{BOOTSTRAP, Process};
use crate::envoy::{ConfigCounts, ProxyPhase, fingerprint, leftover};

impl Supervisor {
    /// Goes on with the process that is there, or starts one.
    pub(super) async fn begin(&mut self) -> Result<Process, SupervisionError> {
        let fingerprint = fingerprint::of(&self.config);
        let note = Note::new(&self.config.directory);
        let until = Instant::now() + leftover::NOTE_LIMIT;
        loop {
            if let Some(noted) = note.living() {
                if let Some(process) = adopt(&noted, &fingerprint) {
                    self.output()?;
                    self.adopted(&process, &noted);
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
    async fn start(&mut self, fingerprint: &str) -> Result<Option<Process>, SupervisionError> {
        let output = self.output()?.for_process().map_err(SupervisionError::Output)?;
        let Some(output) = output else { return Ok(None) };
        let bootstrap = self.config.bootstrap.to_string();
        fsio::replace(&self.config.directory.join(BOOTSTRAP), bootstrap.as_bytes(), fsio::PUBLIC)
            .map_err(SupervisionError::Bootstrap)?;
        let process = Process::start(&self.config, fingerprint, output).await;
        let process = process.map_err(SupervisionError::Start)?;
        tracing::info!(pid = process.pid, "Started the proxy.");
        self.traffic = match self.traffic {
            Traffic::Out | Traffic::OutOf => Traffic::OutOf,
            Traffic::AsFound | Traffic::In | Traffic::Into => Traffic::In,
        };
        self.stands(&process, self.clock.now());
        Ok(Some(process))
    }

    fn adopted(&mut self, process: &Process, noted: &Noted) {
        tracing::info!(pid = process.pid, "Adopted the running proxy.");
        self.traffic = Traffic::AsFound;
        let now = self.clock.now();
        let started = noted.age().and_then(|age| now.checked_sub(age));
        self.stands(process, started.unwrap_or(now));
    }

    fn stands(&self, process: &Process, started_at: SystemTime) {
        self.state.send_modify(|state| {
            state.phase = ProxyPhase::Starting;
            state.pid = Some(process.pid);
            state.origin = process.origin();
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

/// The process, where it is one that we would have started ourselves.
fn adopt(noted: &Noted, fingerprint: &str) -> Option<Process> {
    if !noted.is_of(fingerprint) {
        return None;
    }
    match Process::adopt(noted) {
        Ok(process) => process,
        Err(error) => {
            tracing::warn!(%error, pid = noted.pid, "The running proxy cannot be adopted.");
            None
        }
    }
}

const LOOK: Duration = Duration::from_millis(25);
