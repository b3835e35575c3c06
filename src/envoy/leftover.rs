//! An Envoy of an earlier agent that died: found by its process number and start time, and ended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::base::fsio::{self, FileError};

/// The note about the running Envoy.
pub(super) struct Note {
    path: PathBuf,
}

impl Note {
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join("envoy.pid") }
    }

    /// Notes a process.
    pub(super) fn write(&self, pid: u32) -> Result<(), FileError> {
        let started = start_time(pid).unwrap_or(0);
        fsio::replace(&self.path, format!("{pid} {started}\n").as_bytes(), fsio::PUBLIC)
    }

    /// Forgets it.
    pub(super) fn clear(&self) {
        drop(fsio::remove(&self.path));
    }

    /// The noted process and its start time.
    fn read(&self) -> Option<(u32, u64)> {
        let text = fsio::read_text(&self.path, 100).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        Some((pid.parse().ok()?, started.parse().ok()?))
    }

    /// Ends the noted process if it still lives. A process that merely has its number is left
    /// alone: its start time differs.
    pub(super) async fn end_leftover(&self) {
        let Some((pid, started)) = self.read() else { return };
        if start_time(pid) != Some(started) {
            return self.clear();
        }
        tracing::warn!(pid, "Ending the proxy of an earlier agent.");
        for (signal, limit) in [(Signal::SIGTERM, TERM_LIMIT), (Signal::SIGKILL, KILL_LIMIT)] {
            let Ok(raw) = i32::try_from(pid) else { return };
            // It may have ended by itself meanwhile.
            kill(Pid::from_raw(raw), signal).ok();
            let steps = limit.as_millis() / LOOK.as_millis();
            for _ in 0..steps {
                if start_time(pid) != Some(started) {
                    return self.clear();
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// The noted proxy of a run directory, if its process lives.
#[must_use]
pub fn living(directory: &Path) -> Option<u32> {
    let (pid, started) = Note::new(directory).read()?;
    (start_time(pid) == Some(started)).then_some(pid)
}

/// Ends the noted proxy of a run directory, if its process lives.
pub async fn end_leftover(directory: &Path) {
    Note::new(directory).end_leftover().await;
}

/// Field 22 of `/proc/PID/stat`, which with the number names a process for good (proc(5)). A zombie
/// does not live any more.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

const TERM_LIMIT: Duration = Duration::from_secs(5);
const KILL_LIMIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_only_has_the_number_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let note = Note::new(directory.path());
        let me = std::process::id();
        std::fs::write(directory.path().join("envoy.pid"), format!("{me} 1\n")).unwrap();
        note.end_leftover().await;
        assert!(!directory.path().join("envoy.pid").exists(), "and forgotten");
        assert!(start_time(me).is_some());
    }
}
