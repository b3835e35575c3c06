//! The hidden subcommands that start the proxy, and become it.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::exit::{Exit, Failure};
use crate::envoy::{LaunchArgs, ProxyUser, launch, serve_order};

/// Arguments of `launch-proxy`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    binary: PathBuf,
    #[arg(long)]
    fingerprint: String,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    #[arg(long, requires = "uid")]
    gid: Option<u32>,
    #[arg(long)]
    transparent: bool,
    #[arg(last = true)]
    args: Vec<String>,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { binary, fingerprint, directory, uid, gid, transparent, args } = args;
    let user = uid.zip(gid).map(|(uid, gid)| ProxyUser { uid, gid });
    match launch(LaunchArgs { binary, user, transparent, directory, fingerprint, args }) {
        Ok(never) => match never {},
        Err(error) => Err(Failure::new(Exit::Proxy, error)),
    }
}

/// Standard input is the connection that the service manager has accepted.
pub(super) fn serve() -> Result<(), Failure> {
    serve_order(std::io::stdin().as_fd()).map_err(|error| Failure::new(Exit::Proxy, error))
}
