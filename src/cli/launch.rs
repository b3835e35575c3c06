//! The hidden subcommands that start the proxy, and become it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::exit::{Exit, Failure};
use crate::base::passing;
use crate::base::user_file::{self, FileOrder};
use crate::capture::SocketOrder;
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
    #[arg(long)]
    trial: bool,
    #[arg(last = true)]
    args: Vec<String>,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { binary, fingerprint, directory, uid, gid, transparent, trial, args } = args;
    let user = uid.zip(gid).map(|(uid, gid)| ProxyUser { uid, gid });
    match launch(LaunchArgs { binary, user, transparent, directory, fingerprint, trial, args }) {
        Ok(never) => match never {},
        Err(error) => Err(Failure::new(Exit::Proxy, error)),
    }
}

/// Standard input is the connection that the service manager has accepted: somebody wants a proxy,
/// a socket to try the redirect rules with, or a file that the proxy's user may read.
pub(super) fn serve() -> Result<(), Failure> {
    let served = || -> std::io::Result<()> {
        let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        stream.set_read_timeout(Some(ORDER_LIMIT))?;
        let (line, output) = passing::receive(&stream, ORDER_BYTES)?;
        if let Ok(order) = serde_json::from_slice::<SocketOrder>(&line) {
            return passing::send(&stream, b"made", Some(order.make()?.as_fd()));
        }
        match serde_json::from_slice::<FileOrder>(&line) {
            Ok(order) => user_file::answer(&stream, &order),
            Err(_) => serve_order(stream, &line, output),
        }
    };
    served().map_err(|error| Failure::new(Exit::Proxy, error))
}

/// Who connects has its order ready.
const ORDER_LIMIT: Duration = Duration::from_secs(10);
/// Some paths and arguments.
const ORDER_BYTES: u64 = 1 << 20;
