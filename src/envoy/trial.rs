//! A trial of the Envoy that would take the place of one that serves. The binary runs as the
//! proxy's user, says its version and validates the bootstrap. It listens nowhere, and the running
//! Envoy is not touched.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::Config;
use super::binary::version_in;
use super::process::{SUCCESS, arguments, run_to_end};
use crate::base::excerpt::excerpt;
use crate::base::fsio;

/// Why an Envoy cannot take the place of the running one.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error("cannot write the bootstrap for the trial of {binary}")]
    Bootstrap {
        binary: String,
        #[source]
        source: fsio::FileError,
    },
    #[error("cannot start {binary}")]
    Start {
        binary: String,
        #[source]
        source: io::Error,
    },
    #[error("{binary} {step}: {how}{}", quoted(words))]
    Failed { binary: String, step: &'static str, how: String, words: String },
}

/// Tries the configured binary with the configured bootstrap; returns its version.
pub(super) async fn trial(config: &Config) -> Result<String, TrialError> {
    let (step, args) = ("--version", vec!["--version".to_owned()]);
    let words = run(config, step, args).await?;
    let version = version_in(&words).ok_or_else(|| TrialError::Failed {
        binary: config.binary.display().to_string(),
        step,
        how: "the output is not Envoy's".to_owned(),
        words: excerpt(&words, WORDS),
    })?;
    let path = config.directory.join(BOOTSTRAP);
    fsio::replace(&path, config.bootstrap.to_string().as_bytes(), fsio::PUBLIC).map_err(
        |source| TrialError::Bootstrap { binary: config.binary.display().to_string(), source },
    )?;
    let mut args = arguments(config, BOOTSTRAP);
    args.extend(["--mode", "validate"].map(str::to_owned));
    let validated = run(config, "--mode validate", args).await;
    drop(fsio::remove(&path));
    validated.map(|_| version)
}

/// Runs the binary to its end; returns its output.
async fn run(config: &Config, step: &'static str, args: Vec<String>) -> Result<String, TrialError> {
    let binary = || config.binary.display().to_string();
    let failed = |source: io::Error| TrialError::Start { binary: binary(), source };
    // A pipe, which bounds what a binary can make us keep.
    let (reader, writer) = io::pipe().map_err(failed)?;
    let ended = run_to_end(config, args, OwnedFd::from(writer), LIMIT).await.map_err(failed)?;
    let words = read(&OwnedFd::from(reader)).map_err(failed)?;
    match ended {
        Some(how) if how == SUCCESS => Ok(words),
        how => Err(TrialError::Failed {
            binary: binary(),
            step,
            how: how.unwrap_or_else(|| format!("no end within {LIMIT:?}")),
            words: excerpt(&words, WORDS),
        }),
    }
}

/// What is in a pipe now.
fn read(pipe: &OwnedFd) -> io::Result<String> {
    rustix::io::ioctl_fionbio(pipe.as_fd(), true)?;
    let (mut text, mut block) = (Vec::new(), [0; BLOCK]);
    while text.len() < BYTES {
        match rustix::io::read(pipe, &mut block) {
            Ok(size) if size > 0 => text.extend_from_slice(block.get(..size).unwrap_or_default()),
            _ => break,
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn quoted(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" ({words})") }
}

/// The bootstrap's name during a trial: that of the running Envoy stays.
const BOOTSTRAP: &str = "envoy-trial.json";
/// A cold start from a slow disk takes seconds.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// Characters of the output that an error quotes.
const WORDS: usize = 500;
const BLOCK: usize = 4096;
/// As much as a pipe holds.
const BYTES: usize = 64 << 10;
