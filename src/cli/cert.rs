//! `vm-agent cert`: the identity, by hand.

mod export;
mod rotate;

use clap::Subcommand;
use serde_json::Value;

use super::exit::{Exit, Failure};
use super::options::Global;
use super::screen;
use super::status::{self, text};

/// What to do with the certificate.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show whose it is, who signed it, and until when it is valid
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Get a new key and certificate now; the old ones serve until they are here
    Rotate(rotate::Args),
    /// Write key, certificate chain and roots into a directory, for another program
    Export(export::Args),
}

pub(super) fn run(global: &Global, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Show { json } => show(&status::ask(global)?, *json),
        Command::Rotate(args) => rotate::run(global, args),
        Command::Export(args) => export::run(global, args),
    }
}

fn show(status: &Value, json: bool) -> Result<(), Failure> {
    let identity = status.pointer("/identity").cloned().unwrap_or(Value::Null);
    if json {
        return screen::out(&serde_json::to_string_pretty(&identity).map_err(super::other)?);
    }
    if identity.pointer("/serial").is_none_or(Value::is_null) {
        let error = anyhow::anyhow!("there is no certificate yet");
        let hint = identity.pointer("/renewal/trouble/what").and_then(Value::as_str);
        return Err(Failure::new(Exit::NotReady, error).hint(hint.map(str::to_owned)));
    }
    for (name, at) in ROWS {
        screen::out(&format!("{name:<12}{}", text(&identity, at)))?;
    }
    let left = identity.pointer("/expires_in").and_then(Value::as_i64).unwrap_or_default();
    let left = if left > 0 { status::span(left) } else { "expired".to_owned() };
    screen::out(&format!("{:<12}{left}", "valid for"))
}

const ROWS: [(&str, &str); 8] = [
    ("identity", "/id"),
    ("serial", "/serial"),
    ("issuer", "/issuer"),
    ("key", "/key"),
    ("not before", "/not_before"),
    ("not after", "/not_after"),
    ("source", "/renewal/source"),
    ("renewals", "/renewal/issued"),
];
