//! `vm-agent config`: what is wrong with the configuration, what counts, and what there is to set.

use clap::Subcommand;
use serde_json::json;

use super::exit::Failure;
use super::options::{Global, Overrides};
use super::{reference, screen, settings};

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Tell every problem of the configuration
    Check {
        #[command(flatten)]
        overrides: Box<Overrides>,
    },
    /// Show every setting that counts, and where it came from
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        overrides: Box<Overrides>,
    },
    /// Print what every setting is for, with defaults, flags and variables, as Markdown
    Reference,
}

pub(super) fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let (overrides, show) = match command {
        Command::Check { overrides } => (overrides, None),
        Command::Show { json, overrides } => (overrides, Some(json)),
        Command::Reference => return screen::out(reference::page().trim_end()),
    };
    let document = settings::from_file(global, &overrides)?;
    let loaded = settings::load(&document, global)?;
    match show {
        None => screen::out("the configuration is good"),
        Some(true) => {
            let all = json!({"schema": 1, "settings": loaded.effective});
            screen::out(&serde_json::to_string_pretty(&all).map_err(super::other)?)
        }
        Some(false) => loaded.effective.iter().try_for_each(|one| {
            screen::out(&format!("{} = {}  ({})", one.setting, one.value, one.origin))
        }),
    }
}
