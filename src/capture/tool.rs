//! Runs the host's tools: no shell, a bounded time, bounded output.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::base::program::PATH;

/// A tool that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It said no.
    #[error("{command} failed: {said}")]
    Failed {
        /// As one would type it.
        command: String,
        /// The first lines of what it said.
        said: String,
    },
    /// It is not there, or cannot be started.
    #[error("cannot run {command}")]
    Start {
        /// As one would type it.
        command: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// It hung.
    #[error("{command} did not end within {} s", TIME.as_secs())]
    Time {
        /// As one would type it.
        command: String,
    },
}

/// Runs a tool, with a text on its standard input, and gives what it writes.
///
/// # Errors
/// When it cannot be started, hangs or fails.
pub(super) async fn run(tool: &Path, arguments: &[&str], input: &str) -> Result<String, ToolError> {
    let name = tool.file_name().unwrap_or(tool.as_os_str()).to_string_lossy();
    let command = std::iter::once(&*name).chain(arguments.iter().copied());
    let command = command.collect::<Vec<_>>().join(" ");
    let start = |source| ToolError::Start { command: command.clone(), source };
    #[expect(clippy::disallowed_methods, reason = "the one place that runs the host's tools")]
    let mut child = Command::new(tool)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A tool that refuses early closes its end; what it says then is the error.
            stdin.write_all(input.as_bytes()).await.ok();
        }
    };
    let work = async {
        let ((), out, said, status) =
            tokio::join!(feed, bounded(stdout), bounded(stderr), child.wait());
        (out, said, status)
    };
    let Ok((out, said, status)) = tokio::time::timeout(TIME, work).await else {
        return Err(ToolError::Time { command });
    };
    if status.map_err(start)?.success() {
        return Ok(out);
    }
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = said.get(..said.len().min(SAID)).unwrap_or_default().join("; ");
    Err(ToolError::Failed { command, said })
}

/// The first of these tools that is installed.
pub(super) fn find(names: &[&str]) -> Option<PathBuf> {
    let places = || PATH.split(':');
    let candidates = names.iter().flat_map(|name| places().map(move |p| Path::new(p).join(name)));
    candidates.into_iter().find(|path| is_file(path.as_os_str()))
}

fn is_file(path: &OsStr) -> bool {
    std::fs::metadata(path).is_ok_and(|about| about.is_file())
}

async fn bounded<R: tokio::io::AsyncRead + Unpin>(source: Option<R>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut source) = source {
        (&mut source).take(OUTPUT).read_to_end(&mut bytes).await.ok();
        // The rest is read and dropped, so that the tool does not hang at a full pipe.
        tokio::io::copy(&mut source, &mut tokio::io::sink()).await.ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Where such tools are installed.
/// Longer than iptables-restore waits for its lock.
const TIME: Duration = Duration::from_secs(40);
/// Far more than the rules of a busy host.
const OUTPUT: u64 = 16 * 1024 * 1024;
/// Lines of an error that are quoted.
const SAID: usize = 4;
