//! The note about the running Envoy: which process it is, and what it was started with. It outlives
//! the agent, and tells the next one whose Envoy that is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fingerprint::Fingerprint;
use crate::base::fsio::{self, FileError};

/// The note of a run directory.
pub(super) struct Note {
    path: PathBuf,
}

/// A noted process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    /// Its number.
    pub(super) pid: u32,
    /// When it was started, in clock ticks since the boot.
    started: u64,
    /// What it was started with; `None` when it is on its way out, or was noted by an agent that did
    /// not say.
    pub(super) fingerprint: Option<Fingerprint>,
}

impl Note {
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join("envoy.pid") }
    }

    /// Notes a process by what it was started with. The launcher does this before it becomes Envoy,
    /// so that no Envoy runs without a note.
    pub(super) fn write(&self, pid: u32, fingerprint: &str) -> Result<(), FileError> {
        let started = start_time(pid).unwrap_or(0);
        let line = format!("{pid} {started} {fingerprint}\n");
        fsio::replace(&self.path, line.as_bytes(), fsio::PUBLIC)
    }

    /// The process is on its way out: whoever finds it from now on has to end it.
    pub(super) fn condemn(&self) -> Result<(), FileError> {
        let Some(Noted { pid, started, .. }) = self.read() else { return Ok(()) };
        fsio::replace(&self.path, format!("{pid} {started}\n").as_bytes(), fsio::PUBLIC)
    }

    /// Forgets it.
    pub(super) fn clear(&self) {
        drop(fsio::remove(&self.path));
    }

    /// The noted process, if it lives.
    pub(super) fn living(&self) -> Option<Noted> {
        self.read().filter(Noted::lives)
    }

    fn read(&self) -> Option<Noted> {
        let text = fsio::read_text(&self.path, BYTES).ok()?;
        let mut parts = text.split_whitespace();
        let pid = parts.next()?.parse().ok()?;
        let started = parts.next()?.parse().ok()?;
        let fingerprint = parts.next().and_then(|word| word.parse().ok());
        Some(Noted { pid, started, fingerprint })
    }
}

impl Noted {
    /// Whether the process is still there. One that merely has its number was started at another time.
    pub(super) fn lives(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// The group that it runs as; `None` when it has ended.
    pub(super) fn group(&self) -> Option<u32> {
        let path = format!("/proc/{}/status", self.pid);
        let status = fsio::read_text(Path::new(&path), STATUS_BYTES).ok()?;
        let groups = status.lines().find_map(|line| line.strip_prefix("Gid:"))?;
        // Real, effective, saved, and that of files (proc(5)).
        groups.split_whitespace().nth(1)?.parse().ok()
    }

    /// For how long it has been running.
    pub(super) fn age(&self) -> Option<Duration> {
        let uptime = fsio::read_text(Path::new("/proc/uptime"), PROC_BYTES).ok()?;
        let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
        let uptime = Duration::try_from_secs_f64(uptime).ok()?;
        let second = rustix::param::clock_ticks_per_second();
        let seconds = self.started.checked_div(second)?;
        let rest = self.started.checked_rem(second)?.saturating_mul(1000).checked_div(second)?;
        let started = Duration::from_secs(seconds) + Duration::from_millis(rest);
        Some(uptime.saturating_sub(started))
    }
}

/// The noted proxy of a run directory, if its process lives.
#[must_use]
pub fn living(directory: &Path) -> Option<u32> {
    Some(Note::new(directory).living()?.pid)
}

/// Field 22 of `/proc/PID/stat`, which with the number names a process for good (proc(5)). A zombie
/// does not live any more.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fsio::read_text(Path::new(&format!("/proc/{pid}/stat")), PROC_BYTES).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

/// Two numbers and a fingerprint.
const BYTES: u64 = 200;
/// One line of numbers, and a name of at most 64 bytes.
const PROC_BYTES: u64 = 4096;
/// It names all groups of a process.
const STATUS_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_only_has_the_number_is_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let me = std::process::id();
        let path = directory.path().join("envoy.pid");
        std::fs::write(&path, format!("{me} 1 f\n")).unwrap();
        assert_eq!(living(directory.path()), None);
        Note::new(directory.path()).write(me, "f").unwrap();
        assert_eq!(living(directory.path()), Some(me));
    }

    #[test]
    fn a_process_is_known_by_what_it_was_started_with_until_it_is_condemned() {
        let directory = tempfile::tempdir().unwrap();
        let note = Note::new(directory.path());
        note.write(std::process::id(), "process:bootstrap:node:1.0.0").unwrap();
        let noted = note.living().unwrap();
        assert_eq!(noted.fingerprint.clone().unwrap().to_string(), "process:bootstrap:node:1.0.0");
        assert!(noted.age().unwrap() < Duration::from_secs(3600));
        note.condemn().unwrap();
        assert_eq!(note.living().unwrap().fingerprint, None);
    }

    #[test]
    fn a_note_that_is_none_names_nobody() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "x", "1", "1 x", "-1 1", &"1 ".repeat(1000)] {
            std::fs::write(directory.path().join("envoy.pid"), text).unwrap();
            assert_eq!(living(directory.path()), None, "{text}");
        }
    }
}
