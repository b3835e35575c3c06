//! A command as a probe: no shell, a clean environment, its whole process group ended in time.

use std::io;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getegid, getgid};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::http::quoted;

/// A command that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is none.
    #[error("expected a program and its arguments, found an empty list")]
    Empty,
    /// It is not there, or is no program.
    #[error("there is no program {program}")]
    Missing {
        /// Its path.
        program: String,
    },
    /// It is looked for in no place but its own.
    #[error("found {program:?}, expected the absolute path of a program")]
    Relative {
        /// What was found.
        program: String,
    },
}

/// Whether a command could be run: an absolute path of a program, or the name of one in the usual
/// places.
///
/// # Errors
/// With what is wrong with it.
pub fn check_command(command: &[String]) -> Result<(), CommandError> {
    let program = command.first().filter(|program| !program.is_empty());
    let program = program.ok_or(CommandError::Empty)?.clone();
    let is_program = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.starts_with('/') {
        return if is_program(Path::new(&program)) {
            Ok(())
        } else {
            Err(CommandError::Missing { program })
        };
    }
    if program.contains('/') {
        return Err(CommandError::Relative { program });
    }
    let found = PATH.split(':').any(|place| is_program(&Path::new(place).join(&program)));
    if found { Ok(()) } else { Err(CommandError::Missing { program }) }
}

/// Runs it once. Dropping the future ends it and all that it started.
pub(super) async fn check(command: &[String]) -> Result<(), String> {
    check_command(command).map_err(|error| error.to_string())?;
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    #[expect(clippy::disallowed_methods, reason = "the one place that runs probes' commands")]
    let mut wanted = Command::new(program);
    wanted
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    // Not the group that we took on, by which redirect rules know us. A service has no other.
    if getegid() != getgid() {
        wanted.gid(getgid().as_raw());
    }
    let mut child = wanted.spawn().map_err(|error| format!("cannot run {program}: {error}"))?;
    let _group = Group(child.id());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (status, out, err) = tokio::join!(child.wait(), beginning(out), beginning(err));
    let status = status.map_err(|error: io::Error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let said = if err.is_empty() { out } else { err };
    let said = quoted(&said);
    let colon = if said.is_empty() { "" } else { ": " };
    Err(format!("{program} ended with {status}{colon}{said}"))
}

/// What it says first; the rest is read and dropped.
async fn beginning<R: tokio::io::AsyncRead + Unpin>(source: Option<R>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut source) = source {
        (&mut source).take(BYTES).read_to_end(&mut bytes).await.ok();
        tokio::io::copy(&mut source, &mut tokio::io::sink()).await.ok();
    }
    bytes
}

/// Ends a process group when dropped: a probe's child of a child must not outlive it.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            // It is usually gone already.
            killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is quoted of it.
const BYTES: u64 = 1024;
