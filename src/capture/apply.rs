//! Does, looks and undoes: the only part that changes the host.

use std::path::PathBuf;

use serde::Serialize;

use super::journal::{Journal, Undo, boot};
use super::plan::{Plan, Step, find_iptables, ip, list_chains, save, version};
use super::probe::{self, ProbeError};
use super::rule::Family;
use super::sockets::Sockets;
use super::tool::{self, ToolError};
use super::{Backend, Config, MARK, ROUTE_TABLE, diagnose, iptables, nft, rules};
use crate::base::fsio::{self, FileError};

/// The host's rules, by way of a journal.
#[derive(Clone, Debug)]
pub struct Capture {
    journal: PathBuf,
    sockets: Sockets,
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
    /// The rules are in place and do nothing; they were taken back.
    #[error("the rules were taken back, as they do not work")]
    Probe(#[from] ProbeError),
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
            Self::Probe(error) => Some(error.hint()),
            Self::Journal(_) => Some("make room on the disk, or make it writable".to_owned()),
            Self::Failed(_) => None,
        }
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
        Self { journal, sockets: Sockets::default() }
    }

    /// The same, where the launcher behind this Unix socket makes what the rules are tried with.
    #[must_use]
    pub fn with_launcher(self, socket: Option<PathBuf>) -> Self {
        Self { sockets: socket.map_or(Sockets::Own, Sockets::Launcher), ..self }
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

    /// Puts the rules in place, or in order, and tries them. When anything fails, what was done is
    /// undone.
    ///
    /// # Errors
    /// With what failed; the host is as it was then.
    pub async fn apply(&self, config: &Config) -> Result<Applied, ApplyError> {
        let before = self.done();
        let plan = Plan::make(config, &before).await?;
        // What an earlier configuration did and this one does not is undone afterwards.
        let stale: Vec<Undo> =
            before.undo.iter().filter(|undo| !plan.undo.contains(undo)).cloned().collect();
        let undo = stale.iter().chain(&plan.undo).cloned().collect();
        let mut journal = Journal { boot: boot(), undo, shown: None, rules: None };
        journal.write(&self.journal)?;
        let done = self.execute(config, &plan).await;
        match done {
            Ok(probed) => {
                undo_all(&stale).await?;
                journal.undo.clone_from(&plan.undo);
                journal.shown = Some(shown(&plan.undo).await?);
                journal.rules = Some(described(config));
                journal.write(&self.journal)?;
                Ok(Applied { plan, probed })
            }
            Err(error) => {
                if let Err(worse) = self.remove().await {
                    let error = crate::base::trouble::chain(&worse);
                    tracing::error!(error, "Some rules could not be taken back.");
                }
                Err(error)
            }
        }
    }

    async fn execute(&self, config: &Config, plan: &Plan) -> Result<String, ApplyError> {
        for step in &plan.steps {
            if let Err(error) = execute(step).await {
                let nftables = config.backend == Backend::Nftables;
                return Err(diagnose::explain(error, &step.input, nftables).await);
            }
        }
        Ok(probe::probe(config, &self.sockets).await?)
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
            Some(then) if shown(&journal.undo).await? == then => Ok(Found::Intact),
            _ => Ok(Found::Broken),
        }
    }

    /// Whether exactly these rules were applied in this boot, by whichever process, and are intact.
    ///
    /// # Errors
    /// When the host cannot be read.
    pub async fn stands(&self, config: &Config) -> Result<bool, ApplyError> {
        let is_same = self.done().rules.is_some_and(|rules| rules == described(config));
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

/// What the host shows of what was done.
async fn shown(undo: &[Undo]) -> Result<String, ApplyError> {
    let mut text = String::new();
    for one in undo {
        match one {
            Undo::NftTable => text.push_str(&nft_table().await?.unwrap_or_default()),
            Undo::Iptables { flavour, ipv6, .. } => {
                let saved = save(flavour, family(*ipv6)).await?;
                text.push_str(&iptables::own_lines(&saved).join("\n"));
            }
            Undo::Address { address } => {
                let all = ip(&["-6", "-o", "address", "show", "dev", "lo"]).await?;
                text.push_str(if all.contains(address) { address } else { "-" });
            }
            Undo::Route { ipv6 } => {
                let version = version(family(*ipv6));
                let table = ROUTE_TABLE.to_string();
                text.push_str(&ip(&[version, "route", "show", "table", &table]).await?);
            }
        }
    }
    Ok(text)
}

/// Our table as nft shows it; `None` when there is none.
async fn nft_table() -> Result<Option<String>, ApplyError> {
    let tool = tool::find(&["nft"]).ok_or_else(ApplyError::no_nft)?;
    let tables = tool::run(&tool, &["list", "tables"], "").await?;
    if !tables.lines().any(|line| line == format!("table {}", nft::TABLE)) {
        return Ok(None);
    }
    let mut arguments = vec!["list", "table"];
    arguments.extend(nft::TABLE.split(' '));
    Ok(Some(tool::run(&tool, &arguments, "").await?))
}

/// What a lost journal would have said of the tables.
async fn found_by_name() -> Vec<Undo> {
    match nft_table().await {
        Ok(Some(_)) => vec![Undo::NftTable],
        _ => Vec::new(),
    }
}

/// The last first, all of them even when one fails.
async fn undo_all(undo: &[Undo]) -> Result<(), ApplyError> {
    let mut failed = None;
    for one in undo.iter().rev() {
        if let Err(error) = undo_one(one).await {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn undo_one(undo: &Undo) -> Result<(), ApplyError> {
    match undo {
        Undo::NftTable => {
            if nft_table().await?.is_some() {
                let tool = tool::find(&["nft"]).ok_or_else(ApplyError::no_nft)?;
                tool::run(&tool, &["-f", "-"], &format!("delete table {}\n", nft::TABLE)).await?;
            }
        }
        Undo::Iptables { flavour, ipv6, chains } => {
            remove_chains(flavour, family(*ipv6), chains).await?;
        }
        Undo::Address { address } => {
            let all = ip(&["-6", "-o", "address", "show", "dev", "lo"]).await?;
            if all.contains(address) {
                ip(&["-6", "address", "delete", address, "dev", "lo"]).await?;
            }
        }
        Undo::Route { ipv6 } => {
            let version = version(family(*ipv6));
            let (mark, table) = (MARK.to_string(), ROUTE_TABLE.to_string());
            // Either may be gone, or never have been made.
            let rule = [version, "rule", "delete", "fwmark", &mark, "lookup", &table];
            ip(&rule).await.ok();
            ip(&[version, "route", "flush", "table", &table]).await.ok();
        }
    }
    Ok(())
}

async fn remove_chains(flavour: &str, family: Family, before: &[String]) -> Result<(), ApplyError> {
    let text = iptables::removal(&save(flavour, family).await?);
    if !text.is_empty() {
        let tool = find_iptables(flavour, family, "restore")?;
        tool::run(&tool, &["--noflush", "--wait=30"], &text).await?;
    }
    // The newer iptables makes tables and chains of nftables, which can be deleted again.
    let Some(nft) = tool::find(&["nft"]).filter(|_| flavour != "legacy") else { return Ok(()) };
    let saved = save(flavour, family).await?;
    let name = if family == Family::V6 { "ip6" } else { "ip" };
    let made = |all: Vec<String>| all.into_iter().filter(|one| !before.contains(one));
    for chain in made(list_chains(family).await?) {
        if let Some((table, short)) = chain.split_once(' ')
            && iptables::is_bare(&saved, &chain)
        {
            tool::run(&nft, &["delete", "chain", name, table, short], "").await?;
        }
    }
    let left = list_chains(family).await?;
    for table in made(left.clone()).filter(|one| OURS.contains(&one.as_str())) {
        // One that somebody put a chain of his own into stays.
        if !left.iter().any(|one| one.starts_with(&format!("{table} "))) {
            tool::run(&nft, &["delete", "table", name, &table], "").await?;
        }
    }
    Ok(())
}

fn family(ipv6: bool) -> Family {
    if ipv6 { Family::V6 } else { Family::V4 }
}

/// The tables of iptables that we use.
const OURS: [&str; 3] = ["raw", "mangle", "nat"];
