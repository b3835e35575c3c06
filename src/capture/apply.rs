//! Does, looks and undoes: the only part that changes the host.

use std::path::PathBuf;

use serde::Serialize;

use super::hold::Held;
use super::journal::{Journal, Undo, boot};
use super::listeners::Foreign;
use super::plan::{Plan, Step, find_iptables};
use super::probe::{self, ProbeError};
use super::rule::Family;
use super::sockets::Sockets;
use super::tool::{self, ToolError};
use super::undo::{found_by_name, shown, undo_all};
use super::{Backend, Cidr, Config, diagnose, nft, rules};
use crate::base::fsio::{self, FileError};

/// The host's rules, by way of a journal.
#[derive(Clone, Debug)]
pub struct Capture {
    journal: PathBuf,
    sockets: Sockets,
    restore_at_boot: bool,
}

/// What was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The commands that were run.
    pub plan: Plan,
    /// What the probe saw, in words.
    pub probed: String,
}

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// There was nothing of ours.
    Nothing,
    /// What the journal said.
    Undone,
}

/// What becomes of the rules when they cannot be put in place, or do not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// All of them are removed.
    Undo,
    /// Those that are in place stay.
    Keep,
}

/// What became of the rules of an earlier boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// There were none, or an older version of the agent had made them.
    Nothing,
    /// They are in place already.
    Intact,
    /// They are in place again.
    Restored,
}

/// What is found on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// No rules of ours are expected.
    Absent,
    /// They are as they were applied.
    Intact,
    /// They were begun and not finished, or somebody else changed or removed them.
    Broken,
}

/// Why the rules could not be put in place, looked at or removed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The kernel or the process lacks something.
    #[error("this host cannot redirect traffic: {missing}")]
    Host {
        /// What is missing.
        missing: String,
        /// What to do.
        hint: String,
        /// What the tool said.
        #[source]
        source: ToolError,
    },
    /// The journal cannot be written; nothing was changed then.
    #[error("nothing was changed: what is done must be written down first")]
    Journal(#[from] FileError),
    /// They were applied, and are not there.
    #[error("somebody else removed or changed the redirect rules as soon as they were in place")]
    Gone,
    /// Another user listens at a port of the proxy.
    #[error("{0}")]
    Port(String),
    /// The rules are in place and do nothing.
    #[error("the redirect rules are in place, but connections do not follow them")]
    Probe(#[from] ProbeError),
    /// As [`ApplyError::Probe`]; they were taken back.
    #[error("the rules were taken back, as they do not work")]
    TakenBack(#[source] ProbeError),
    /// A tool is missing.
    #[error("{tool} is not installed")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A tool failed.
    #[error(transparent)]
    Failed(#[from] ToolError),
}

impl ApplyError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Host { hint, .. } => Some(hint.clone()),
            Self::Tool { hint, .. } => Some((*hint).to_owned()),
            Self::Probe(error) | Self::TakenBack(error) => Some(error.hint()),
            Self::Gone => Some(
                "find the program that does it (`nft monitor` shows each change), and have it leave \
                 the rules of others alone"
                    .to_owned(),
            ),
            Self::Port(_) => Some(
                "end that program (`ss -ltnp` shows it); then restart the proxy: `vm-agent proxy restart`"
                    .to_owned(),
            ),
            Self::Journal(_) => Some("make room on the disk, or make it writable".to_owned()),
            Self::Failed(_) => None,
        }
    }

    pub(super) fn port(foreign: Foreign) -> Self {
        Self::Port(foreign.to_string())
    }

    pub(super) fn no_nft() -> Self {
        let hint = if find_iptables("", Family::V4, "restore").is_ok() {
            "install the package nftables, or set capture.mode to iptables"
        } else {
            "install the package nftables (iptables is not here either)"
        };
        Self::Tool { tool: "nft", hint }
    }

    pub(super) fn no_iptables() -> Self {
        let hint = if tool::find(&["nft"]).is_some() {
            "install the package iptables, or set capture.mode to nftables"
        } else {
            "install the package nftables or iptables (neither is here)"
        };
        Self::Tool { tool: "iptables", hint }
    }

    pub(super) fn no_ip() -> Self {
        Self::Tool { tool: "ip", hint: "install the package iproute2" }
    }
}

impl Capture {
    /// The capture whose journal lies there.
    #[must_use]
    pub fn new(journal: PathBuf) -> Self {
        Self { journal, sockets: Sockets::default(), restore_at_boot: false }
    }

    /// The same, where the launcher behind this Unix socket makes what the rules are tried with.
    #[must_use]
    pub fn with_launcher(self, socket: Option<PathBuf>) -> Self {
        Self { sockets: socket.map_or(Sockets::Own, Sockets::Launcher), ..self }
    }

    /// The same, whose rules are put back at the next boot before the network is up: they stay
    /// whatever happens to the agent and the proxy.
    #[must_use]
    pub fn with_restore_at_boot(self, restore_at_boot: bool) -> Self {
        Self { restore_at_boot, ..self }
    }

    /// Whether anything was ever done and not undone, in this boot or an earlier one.
    #[must_use]
    pub fn has_journal(&self) -> bool {
        self.journal.exists()
    }

    /// What [`Capture::apply`] would do now.
    ///
    /// # Errors
    /// When a tool is missing or the host cannot be read.
    pub async fn plan(&self, config: &Config) -> Result<Plan, ApplyError> {
        Plan::make(config, &self.done()).await
    }

    /// Puts the rules in place, or in order, and tries them.
    ///
    /// # Errors
    /// With what failed; `on_failure` says what becomes of the rules then.
    pub async fn apply(
        &self,
        config: &Config,
        on_failure: OnFailure,
    ) -> Result<Applied, ApplyError> {
        let done = match self.put(config).await {
            Ok(plan) => match probe::probe(config, &self.sockets).await {
                Ok(probed) => return Ok(Applied { plan, probed }),
                // Nothing can be said of rules that were gone when they were tried.
                Err(error) => match (self.look().await, on_failure) {
                    (Ok(Found::Absent | Found::Broken), _) => ApplyError::Gone,
                    (_, OnFailure::Undo) => ApplyError::TakenBack(error),
                    (_, OnFailure::Keep) => ApplyError::Probe(error),
                },
            },
            Err(error) => error,
        };
        if on_failure == OnFailure::Undo
            && let Err(worse) = self.remove().await
        {
            let error = crate::base::trouble::chain(&worse);
            tracing::error!(error, "Some rules could not be taken back.");
        }
        Err(done)
    }

    /// Puts the rules in place without trying them. Those that were there stay until they are
    /// replaced, also when this fails.
    async fn put(&self, config: &Config) -> Result<Plan, ApplyError> {
        let before = self.done();
        let plan = Plan::make(config, &before).await?;
        // What an earlier configuration did and this one does not is undone afterwards.
        let stale: Vec<Undo> =
            before.undo.iter().filter(|undo| !plan.undo.contains(undo)).cloned().collect();
        let undo = stale.iter().chain(&plan.undo).cloned().collect();
        let mut journal = Journal {
            boot: boot(),
            undo,
            shown: None,
            rules: None,
            config: Some(config.clone()),
            restore: self.restore_at_boot,
        };
        journal.write(&self.journal)?;
        for step in &plan.steps {
            if let Err(error) = execute(step).await {
                let nftables = config.backend == Backend::Nftables;
                return Err(diagnose::explain(error, &step.input, nftables).await);
            }
        }
        undo_all(&stale).await?;
        journal.undo.clone_from(&plan.undo);
        // What the host does not show is not noted as applied: it would count as intact from then on.
        journal.shown = Some(shown(&plan.undo).await?.ok_or(ApplyError::Gone)?);
        journal.rules = Some(described(config));
        journal.write(&self.journal)?;
        Ok(plan)
    }

    /// Puts the rules of an earlier boot back, before the network and the agent are up.
    ///
    /// DNS queries go to the host's resolvers, as the agent does not answer yet, and metadata services
    /// of clouds at link-local addresses can be asked, which decide how the host starts.
    ///
    /// # Errors
    /// With what failed.
    pub async fn restore(&self) -> Result<Restored, ApplyError> {
        let last = Journal::last(&self.journal).filter(|last| last.restore);
        let Some(last) = last else { return Ok(Restored::Nothing) };
        if last.boot == boot() && last.shown.is_some() && self.look().await? == Found::Intact {
            return Ok(Restored::Intact);
        }
        let Some(mut config) = last.config else { return Ok(Restored::Nothing) };
        config.dns = None;
        config.delay_inbound = false;
        if !config.outbound.excluded_ranges.contains(&Cidr::LINK_LOCAL_IPV4) {
            config.outbound.excluded_ranges.push(Cidr::LINK_LOCAL_IPV4);
        }
        self.clone().with_restore_at_boot(true).put(&config).await?;
        Ok(Restored::Restored)
    }

    /// Whether the rules were put in place under a closed policy, as the journal says.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        Journal::last(&self.journal).is_some_and(|last| last.restore)
    }

    /// What the rules in place, or those of the last boot, were made for.
    #[must_use]
    pub fn last_config(&self) -> Option<Config> {
        Journal::last(&self.journal)?.config
    }

    /// Undoes what was done, whatever the configuration is now, and forgets the journal. Rules of
    /// which this journal knows nothing may be those of another agent, and stay.
    ///
    /// # Errors
    /// When something could not be undone; the journal is kept then.
    pub async fn remove(&self) -> Result<Removed, ApplyError> {
        self.undo(self.done().undo).await
    }

    /// As [`Capture::remove`]; without a journal, what bears our name is removed.
    ///
    /// # Errors
    /// When something could not be undone.
    pub async fn remove_by_name(&self) -> Result<Removed, ApplyError> {
        let journal = self.done();
        self.undo(if journal.undo.is_empty() { found_by_name().await } else { journal.undo }).await
    }

    async fn undo(&self, undo: Vec<Undo>) -> Result<Removed, ApplyError> {
        undo_all(&undo).await?;
        fsio::remove(&self.journal)?;
        Ok(if undo.is_empty() { Removed::Nothing } else { Removed::Undone })
    }

    /// Takes the proxy's ports, as far as they are free.
    pub(super) async fn hold(&self, held: &mut Held, config: &Config) {
        held.take(config, &self.sockets).await;
    }

    /// Tries the rules with live connections, without changing any; says what was seen.
    ///
    /// # Errors
    /// When connections do not follow the rules.
    pub async fn probe(&self, config: &Config) -> Result<String, ApplyError> {
        Ok(probe::probe(config, &self.sockets).await?)
    }

    /// Whether the rules are as they were applied.
    ///
    /// # Errors
    /// When the host cannot be read.
    pub async fn look(&self) -> Result<Found, ApplyError> {
        let journal = self.done();
        match journal.shown {
            _ if journal.undo.is_empty() => Ok(Found::Absent),
            Some(then) if shown(&journal.undo).await?.is_some_and(|now| now == then) => {
                Ok(Found::Intact)
            }
            _ => Ok(Found::Broken),
        }
    }

    /// Whether exactly these rules were applied in this boot, by whichever process, and are intact.
    ///
    /// # Errors
    /// When the host cannot be read.
    pub async fn stands(&self, config: &Config) -> Result<bool, ApplyError> {
        let done = self.done();
        let is_same = done.rules.is_some_and(|rules| rules == described(config))
            && done.restore == self.restore_at_boot;
        Ok(is_same && self.look().await? == Found::Intact)
    }

    fn done(&self) -> Journal {
        Journal::read(&self.journal).unwrap_or_default()
    }
}

/// All that decides what the host gets.
pub(super) fn described(config: &Config) -> String {
    let how = (config.backend, config.interception, config.ipv6);
    format!("{how:?}\n{}", nft::table(&rules(config)))
}

async fn execute(step: &Step) -> Result<(), ToolError> {
    let arguments: Vec<&str> = step.arguments.iter().map(String::as_str).collect();
    tool::run(&step.tool, &arguments, &step.input).await.map(drop)
}
