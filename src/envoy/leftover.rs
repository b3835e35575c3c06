//! An Envoy whose agent is dead, and which nobody wants to go on with: drained, and ended.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{sleep, timeout};

use super::admin::Admin;
use super::note::{Note, Noted};
use super::output::{PIPE, is_taken};
use super::process::BOOTSTRAP;
use crate::base::fsio;

/// Drains and ends the proxy that a dead agent left in its run directory, and removes what belongs
/// to it; its number if there was one. It takes at most some fifteen seconds.
///
/// Not to be called while an agent runs, which would start another proxy.
pub async fn end_leftover(directory: &Path) -> Option<u32> {
    let note = Note::new(directory);
    // One that has just been started notes itself within moments.
    let looks = NOTE_LIMIT.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        if note.living().is_some() || !is_taken(directory) {
            break;
        }
        sleep(LOOK).await;
    }
    let found = note.living();
    if let Some(noted) = &found {
        let admin = admin_of(directory);
        end(directory, noted, admin, DRAIN_LIMIT).await;
    }
    tidy(directory);
    found.map(|noted| noted.pid)
}

/// Drains a noted process for at most `limit`, and ends it.
pub(super) async fn end(directory: &Path, noted: &Noted, admin: Option<Admin>, limit: Duration) {
    tracing::warn!(pid = noted.pid, "Ending the proxy of an earlier agent.");
    condemn(directory);
    if let Some(admin) = admin {
        tokio::select! {
            // One that does not answer is ended all the same.
            retired = admin.retire(limit) => drop(retired),
            () = gone(noted) => {}
        }
    }
    terminate(noted).await;
}

/// Ends a noted process: first politely, after a while not.
pub(super) async fn terminate(noted: &Noted) {
    for (signal, limit) in [(Signal::SIGTERM, TERM_LIMIT), (Signal::SIGKILL, KILL_LIMIT)] {
        let Ok(raw) = i32::try_from(noted.pid) else { return };
        // It may have ended by itself meanwhile.
        if noted.lives() {
            kill(Pid::from_raw(raw), signal).ok();
        }
        if timeout(limit, gone(noted)).await.is_ok() {
            return;
        }
    }
}

/// From here on the noted process is not to be gone on with.
pub(super) fn condemn(directory: &Path) {
    if let Err(error) = Note::new(directory).condemn() {
        tracing::warn!(%error, "The proxy's end could not be noted.");
    }
}

/// Removes what an ended Envoy needs no more.
pub(super) fn tidy(directory: &Path) {
    Note::new(directory).clear();
    for name in [BOOTSTRAP, PIPE] {
        drop(fsio::remove(&directory.join(name)));
    }
}

async fn gone(noted: &Noted) {
    while noted.lives() {
        sleep(LOOK).await;
    }
}

/// The admin interface, by the bootstrap that lies there.
pub(super) fn admin_of(directory: &Path) -> Option<Admin> {
    let text = fsio::read_text(&directory.join(BOOTSTRAP), BOOTSTRAP_BYTES).ok()?;
    let bootstrap: serde_json::Value = serde_json::from_str(&text).ok()?;
    let port = bootstrap.pointer("/admin/address/socket_address/port_value")?.as_u64()?;
    Some(Admin { port: u16::try_from(port).ok()? })
}

/// Whoever waits for this wants the machine back.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
const TERM_LIMIT: Duration = Duration::from_secs(5);
const KILL_LIMIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);
/// A launcher notes itself within milliseconds, on a busy machine within a second.
pub(super) const NOTE_LIMIT: Duration = Duration::from_secs(5);
/// Some ten kilobytes as a rule.
const BOOTSTRAP_BYTES: u64 = 1 << 20;
