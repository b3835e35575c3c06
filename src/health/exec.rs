//! A command as a probe: no shell, a clean environment, its whole process group ended in time.

use std::io;
use std::path::Path;

use tokio::io::AsyncReadExt;

use super::http::quoted;
use crate::base::program::{self, Group, PATH};

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
    let mut child = program::command(program, arguments)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let _group = Group::of(&child);
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

/// What is quoted of it.
const BYTES: u64 = 1024;
