//! Exit statuses: a documented table, which the service unit uses too.

use std::process::ExitCode;

use crate::base::problem::Problems;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// All is well.
    Ok = 0,
    /// An error without a status of its own.
    Other = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The machine is not ready, or a wait timed out.
    NotReady = 3,
    /// The configuration is unusable.
    Configuration = 4,
    /// The credential is missing or known to be unusable.
    Credential = 5,
    /// The control plane cannot be reached or is not the one that the root certificate names.
    ControlPlane = 6,
    /// The registration was refused.
    Registration = 7,
    /// The proxy is missing, or does not stay up.
    Proxy = 8,
    /// The host refuses: a port in use, a permission, a full disk.
    Host = 9,
    /// Another agent runs with the same root directory.
    AlreadyRunning = 10,
    /// No agent runs with this root directory.
    NotRunning = 11,
    /// Somebody interrupted the command (as shells write it for SIGINT).
    Interrupted = 130,
}

impl Exit {
    /// What an exit status of our own means; any other is [`Exit::Other`].
    pub(super) fn of_status(status: u8) -> Self {
        let all = [
            Self::Usage,
            Self::NotReady,
            Self::Configuration,
            Self::Credential,
            Self::ControlPlane,
            Self::Registration,
            Self::Proxy,
            Self::Host,
            Self::AlreadyRunning,
            Self::NotRunning,
        ];
        all.into_iter().find(|exit| *exit as u8 == status).unwrap_or(Self::Other)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that failed: its status, the cause, and what to do about it.
#[derive(Debug)]
pub(super) struct Failure {
    /// The exit status.
    pub(super) exit: Exit,
    /// The cause with its chain.
    pub(super) error: anyhow::Error,
    /// A sentence or command that mends it.
    pub(super) hint: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::new(Exit::Configuration, problems)
    }
}
