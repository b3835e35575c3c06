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
        let known = MEANINGS.into_iter().find(|(exit, _)| *exit as u8 == status);
        known.map_or(Self::Other, |(exit, _)| exit)
    }
}

/// Every status and its meaning, for `--help` and the manual.
pub(super) const MEANINGS: [(Exit, &str); 13] = [
    (Exit::Ok, "all is well"),
    (Exit::Other, "another error"),
    (Exit::Usage, "the command line is wrong"),
    (Exit::NotReady, "the machine is not ready, or a wait timed out"),
    (Exit::Configuration, "the configuration is unusable"),
    (Exit::Credential, "the credential is missing, or known to be unusable"),
    (Exit::ControlPlane, "the control plane cannot be reached, or is not ours"),
    (Exit::Registration, "the registration was refused"),
    (Exit::Proxy, "the proxy is missing, or does not stay up"),
    (Exit::Host, "the host refuses: a port in use, a permission, a full disk"),
    (Exit::AlreadyRunning, "another agent is running with the same root"),
    (Exit::NotRunning, "no agent is running with this root"),
    (Exit::Interrupted, "somebody interrupted the command"),
];

/// The statuses, one a line.
pub(super) fn statuses() -> String {
    let mut text = "Exit statuses:".to_owned();
    for (status, meaning) in MEANINGS {
        text.push_str(&format!("\n  {:>3}  {meaning}", status as u8));
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_the_agent_has_its_meaning_and_any_other_has_none() {
        assert_eq!(Exit::of_status(4), Exit::Configuration);
        assert_eq!(Exit::of_status(77), Exit::Other);
    }

    #[test]
    fn the_page_of_the_commands_has_the_same_table() {
        let page = include_str!("../../docs/commands.md");
        for (status, meaning) in MEANINGS {
            let row = format!("| {} | {meaning}", status as u8);
            let row = row.replace("the configuration is", "the configuration (or a bundle) is");
            assert!(page.contains(&row), "{row}");
        }
    }
}
