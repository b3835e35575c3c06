//! The hidden subcommands that start the proxy, and become it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::exit::{Exit, Failure};
use super::options::{Global, Overrides};
use super::settings;
use crate::base::passing;
use crate::base::user_file::{self, FileOrder};
use crate::capture::SocketOrder;
use crate::envoy::{
    Allowed, LaunchArgs, ProxyUser, launch, resolve_user, serve_order, tell_version,
};

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

/// Arguments of `tell-version`.
#[derive(Debug, clap::Args)]
pub(super) struct Version {
    #[arg(long)]
    binary: PathBuf,
    #[arg(long)]
    uid: u32,
    #[arg(long)]
    gid: u32,
}

pub(super) fn tell(args: &Version) -> Result<(), Failure> {
    let user = ProxyUser { uid: args.uid, gid: args.gid };
    match tell_version(&args.binary, user) {
        Ok(never) => match never {},
        Err(error) => Err(Failure::new(Exit::Proxy, error)),
    }
}

/// Standard input is the connection that the service manager has accepted: somebody wants a proxy,
/// a socket to try the redirect rules with, or a file that the proxy's user may read.
pub(super) fn serve(global: &Global) -> Result<(), Failure> {
    let served = || -> std::io::Result<()> {
        let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        stream.set_read_timeout(Some(ORDER_LIMIT))?;
        let (line, output) = passing::receive(&stream, ORDER_BYTES)?;
        if let Ok(order) = serde_json::from_slice::<SocketOrder>(&line) {
            return passing::send(&stream, b"made", Some(order.make()?.as_fd()));
        }
        let allowed = allowed(global);
        match serde_json::from_slice::<FileOrder>(&line) {
            Ok(order) if allowed.has_user(order.user) => user_file::answer(&stream, &order),
            Ok(_) => Err(std::io::Error::other("files are opened as the proxy's user only")),
            Err(_) => serve_order(stream, &line, output, &allowed),
        }
    };
    served().map_err(|error| Failure::new(Exit::Proxy, error))
}

/// The user that the configuration names, and the usual one, as which a proxy may be started however
/// the file is by now.
fn allowed(global: &Global) -> Allowed {
    let named = settings::from_file(global, &Overrides::default()).ok().and_then(|document| {
        document.tree().pointer("/proxy/user").map(|user| match user.as_str() {
            Some(name) => name.to_owned(),
            None => user.to_string(),
        })
    });
    let users = [named.as_deref().map(Some), Some(None)].into_iter().flatten();
    let users = users.filter_map(|user| resolve_user(user).ok().flatten()).collect();
    Allowed { users, directory: settings::paths(global).run_directory() }
}

/// Who connects has its order ready.
const ORDER_LIMIT: Duration = Duration::from_secs(10);
/// Some paths and arguments.
const ORDER_BYTES: u64 = 1 << 20;
