//! The plan: the commands that put the rules in place on this host as it is now. Making one reads
//! the host and changes nothing; shown, it is a script that does the same.

use std::fmt;
use std::path::PathBuf;

use super::apply::ApplyError;
use super::journal::{Journal, Undo, is_ipv6};
use super::rule::{Family, Rule};
use super::rules::PASSTHROUGH;
use super::tool::{self, ToolError};
use super::{
    Backend, Config, Flavour, Interception, Ipv6, MARK, ROUTE_TABLE, iptables, nft, rules,
};

/// Commands, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The commands.
    pub steps: Vec<Step>,
    /// What undoes them.
    pub(super) undo: Vec<Undo>,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The tool.
    pub tool: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its standard input; nothing when empty.
    pub input: String,
}

impl Plan {
    /// Makes the plan. `journal` tells what of the host's state is ours already.
    pub(super) async fn make(config: &Config, journal: &Journal) -> Result<Self, ApplyError> {
        let mut plan = Self { steps: Vec::new(), undo: Vec::new() };
        if config.ipv6 == Ipv6::Redirect {
            plan.passthrough_address(journal).await?;
        }
        if config.interception == Interception::Tproxy {
            for family in families(config) {
                plan.route(family).await?;
            }
        }
        let rules = rules(config);
        match config.backend {
            Backend::Nftables => plan.nftables(&rules)?,
            Backend::Iptables(flavour) => {
                let flavour = choose(flavour).await?;
                for family in families(config) {
                    plan.iptables(&rules, flavour, family, journal).await?;
                }
            }
        }
        Ok(plan)
    }

    fn nftables(&mut self, rules: &[Rule]) -> Result<(), ApplyError> {
        let tool = tool::find(&["nft"]).ok_or_else(ApplyError::no_nft)?;
        let arguments = ["-f", "-"].map(str::to_owned).to_vec();
        self.steps.push(Step { tool, arguments, input: nft::transaction(rules) });
        self.undo.push(Undo::NftTable);
        Ok(())
    }

    async fn iptables(
        &mut self,
        rules: &[Rule],
        flavour: &'static str,
        family: Family,
        journal: &Journal,
    ) -> Result<(), ApplyError> {
        let saved = save(flavour, family).await?;
        let input = iptables::replacement(rules, family, &saved);
        let tool = find_iptables(flavour, family, "restore")?;
        let arguments = ["--noflush", "--wait=30"].map(str::to_owned).to_vec();
        self.steps.push(Step { tool, arguments, input });
        let flavour = flavour.to_owned();
        let known = journal.undo.iter().find(|undo| {
            matches!(undo, Undo::Iptables { flavour: one, ipv6, .. }
                if *one == flavour && *ipv6 == is_ipv6(family))
        });
        let ipv6 = is_ipv6(family);
        let chains = list_chains(family).await?;
        self.undo.push(known.cloned().unwrap_or(Undo::Iptables { flavour, ipv6, chains }));
        Ok(())
    }

    /// Envoy's connections to the application come from an address that IPv6 hosts do not have.
    async fn passthrough_address(&mut self, journal: &Journal) -> Result<(), ApplyError> {
        let [_, address] = PASSTHROUGH;
        let address = format!("{address}/128");
        let undo = Undo::Address { address: address.clone() };
        let shown = ip(&["-6", "-o", "address", "show", "dev", "lo"]).await?;
        let is_there = shown.split_whitespace().any(|word| word == address);
        if is_there && !journal.undo.contains(&undo) {
            return Ok(());
        }
        self.ip(&["-6", "address", "replace", &address, "dev", "lo"])?;
        self.undo.push(undo);
        Ok(())
    }

    /// Marked packets are for this machine, whatever their destination.
    async fn route(&mut self, family: Family) -> Result<(), ApplyError> {
        let (version, table) = (version(family), ROUTE_TABLE.to_string());
        let shown = ip(&[version, "rule", "show"]).await?;
        let lookup = format!("fwmark {MARK:#x} lookup {table}");
        if !shown.lines().any(|line| line.trim_end().ends_with(&lookup)) {
            let mark = MARK.to_string();
            self.ip(&[version, "rule", "add", "fwmark", &mark, "lookup", &table])?;
        }
        self.ip(&[version, "route", "replace", "local", "default", "dev", "lo", "table", &table])?;
        self.undo.push(Undo::Route { ipv6: is_ipv6(family) });
        Ok(())
    }

    fn ip(&mut self, arguments: &[&str]) -> Result<(), ApplyError> {
        let tool = tool::find(&["ip"]).ok_or_else(ApplyError::no_ip)?;
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.steps.push(Step { tool, arguments, input: String::new() });
        Ok(())
    }
}

/// A shell script.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let name = step.tool.file_name().unwrap_or(step.tool.as_os_str());
            write!(f, "{} {}", name.to_string_lossy(), step.arguments.join(" "))?;
            match step.input.as_str() {
                "" => writeln!(f)?,
                input => write!(f, " <<'END'\n{input}END\n")?,
            }
        }
        Ok(())
    }
}

fn families(config: &Config) -> impl Iterator<Item = Family> + use<> {
    let has_ipv6 = matches!(config.ipv6, Ipv6::Redirect | Ipv6::Reject);
    [Family::V4].into_iter().chain(has_ipv6.then_some(Family::V6))
}

/// The switch of `ip` for a family.
pub(super) fn version(family: Family) -> &'static str {
    if is_ipv6(family) { "-6" } else { "-4" }
}

/// Runs `ip`.
pub(super) async fn ip(arguments: &[&str]) -> Result<String, ApplyError> {
    let tool = tool::find(&["ip"]).ok_or_else(ApplyError::no_ip)?;
    Ok(tool::run(&tool, arguments, "").await?)
}

/// What iptables-save of a flavour shows.
pub(super) async fn save(flavour: &str, family: Family) -> Result<String, ApplyError> {
    let tool = find_iptables(flavour, family, "save")?;
    Ok(tool::run(&tool, &[], "").await?)
}

/// The tables and chains of nftables, which the newer iptables uses; none without `nft`, as nobody
/// could tell then.
pub(super) async fn list_chains(family: Family) -> Result<Vec<String>, ApplyError> {
    let Some(nft) = tool::find(&["nft"]) else { return Ok(Vec::new()) };
    let family = if is_ipv6(family) { "ip6" } else { "ip" };
    Ok(iptables::chains(&tool::run(&nft, &["list", "chains", family], "").await?))
}

/// The program of a flavour that restores or saves.
pub(super) fn find_iptables(
    flavour: &str,
    family: Family,
    what: &str,
) -> Result<PathBuf, ApplyError> {
    let name = if is_ipv6(family) { "ip6tables" } else { "iptables" };
    let middle = if flavour.is_empty() { String::new() } else { format!("{flavour}-") };
    tool::find(&[&format!("{name}-{middle}{what}")]).ok_or_else(ApplyError::no_iptables)
}

/// The legacy one where it has rules of somebody, else the newer one, else the only one.
async fn choose(wanted: Flavour) -> Result<&'static str, ApplyError> {
    let here = |flavour| find_iptables(flavour, Family::V4, "restore");
    match wanted {
        Flavour::Legacy => here("legacy").map(|_| "legacy"),
        Flavour::Nft => here("nft").map(|_| "nft"),
        Flavour::Auto => {
            if here("legacy").is_ok() && has_rules("legacy").await {
                return Ok("legacy");
            }
            let newer = here("nft").map(|_| "nft");
            newer.or_else(|_| here("").map(|_| "")).or_else(|_| here("legacy").map(|_| "legacy"))
        }
    }
}

async fn has_rules(flavour: &str) -> bool {
    let saved: Result<String, ToolError> = match find_iptables(flavour, Family::V4, "save") {
        Ok(tool) => tool::run(&tool, &[], "").await,
        Err(_) => return false,
    };
    saved.is_ok_and(|saved| saved.lines().any(|line| line.starts_with("-A ")))
}
