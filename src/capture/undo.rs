//! What the host shows of what was done to it, and how that is undone.

use super::apply::ApplyError;
use super::journal::Undo;
use super::plan::{find_iptables, ip, list_chains, save, version};
use super::rule::Family;
use super::{MARK, ROUTE_TABLE, iptables, nft, tool};

/// What the host shows of what was done; `None` where the rules themselves are not there.
pub(super) async fn shown(undo: &[Undo]) -> Result<Option<String>, ApplyError> {
    let mut text = String::new();
    for one in undo {
        match one {
            Undo::NftTable => match nft_table().await? {
                Some(table) => text.push_str(&table),
                None => return Ok(None),
            },
            Undo::Iptables { flavour, ipv6, .. } => {
                let saved = save(flavour, family(*ipv6)).await?;
                let own = iptables::own_lines(&saved);
                if own.iter().all(|line| line.starts_with('*')) {
                    return Ok(None);
                }
                text.push_str(&own.join("\n"));
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
    Ok(Some(text))
}

/// Our table as nft shows it; `None` when there is none.
async fn nft_table() -> Result<Option<String>, ApplyError> {
    let tool = tool::find(&["nft"]).ok_or_else(ApplyError::no_nft)?;
    let mut arguments = vec!["list", "table"];
    arguments.extend(nft::TABLE.split(' '));
    match tool::run(&tool, &arguments, "").await {
        Ok(table) => Ok(Some(table)),
        Err(error) => {
            let tables = tool::run(&tool, &["list", "tables"], "").await?;
            let name = format!("table {}", nft::TABLE);
            if tables.lines().any(|line| line == name) { Err(error.into()) } else { Ok(None) }
        }
    }
}

/// What a lost journal would have said of the tables.
pub(super) async fn found_by_name() -> Vec<Undo> {
    match nft_table().await {
        Ok(Some(_)) => vec![Undo::NftTable],
        _ => Vec::new(),
    }
}

/// The last first, all of them even when one fails.
pub(super) async fn undo_all(undo: &[Undo]) -> Result<(), ApplyError> {
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
const OURS: [&str; 4] = ["raw", "mangle", "nat", "filter"];
