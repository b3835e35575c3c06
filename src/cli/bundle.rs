//! `vm-agent bundle`: join bundles, for the cluster's operator.

mod cluster;
mod create;
mod inspect;

use clap::Subcommand;

use super::exit::Failure;

/// What to do with a bundle.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a bundle with which machines of a WorkloadGroup join, and grant them what they need
    Create(Box<create::Args>),
    /// Show what is in a bundle, without its secrets
    Inspect(inspect::Args),
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create::run(&args),
        Command::Inspect(args) => inspect::run(&args),
    }
}
