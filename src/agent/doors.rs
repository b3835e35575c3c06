//! What has to be there before anything runs: the lock, the ports, the sockets, the signals. Where a
//! service manager kept the sockets of an earlier run, they go on, and whoever waits there is served.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use tokio::net::{TcpListener, UnixListener};

use super::Plan;
use super::signals::Signals;
use super::start::StartError;
use crate::base::fsio::{self, FileError};
use crate::base::uds::{self, KeptListener, Reach};
use crate::config::Paths;
use crate::dns;
use crate::systemd::{Kept, ServiceManager};

/// All of it.
pub(super) struct Doors {
    pub(super) lock: File,
    pub(super) status: TcpListener,
    pub(super) names: dns::Doors,
    pub(super) admin: UnixListener,
    pub(super) sds: UnixListener,
    pub(super) xds: UnixListener,
    pub(super) signals: Signals,
}

impl Doors {
    /// Opens all of it, or nothing.
    pub(super) async fn open(plan: &Plan, kept: Kept) -> Result<Self, StartError> {
        let paths = &plan.paths;
        // The proxy's user enters it as its working directory.
        fsio::make_directory(&paths.run_directory(), 0o755)?;
        let lock = lock(paths)?;
        fsio::make_directory(&paths.state_directory(), 0o700)?;
        let address = plan.status.listen;
        let listen = plan.names.as_ref().map(|names| names.listen.as_slice()).unwrap_or_default();
        let mut again = Again::choose(plan, listen, kept).await;
        let status = match again.status {
            Some(kept) => TcpListener::from_std(kept),
            None => TcpListener::bind(address).await,
        };
        let status = status.map_err(|source| StartError::Port { address, source })?;
        // The proxy has this group, and no other.
        let proxy = plan.envoy.user.map_or(Reach::Owner, |user| Reach::Group(user.gid));
        let kept_names = |_| again.names.next().flatten();
        let doors = Self {
            lock,
            status,
            names: dns::Doors::open(listen, kept_names).await?,
            admin: uds::resume(again.admin, &paths.admin_socket(), Reach::Owner)?,
            sds: uds::resume(again.sds, &paths.sds_socket(), proxy)?,
            xds: uds::resume(again.xds, &paths.xds_socket(), proxy)?,
            signals: Signals::new().map_err(StartError::Signals)?,
        };
        for (name, socket) in doors.named() {
            ServiceManager.keep(name, socket);
        }
        Ok(doors)
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let names = self.names.sockets().flat_map(|(udp, tcp)| [(DNS, udp), (DNS, tcp)]);
        let others = [
            (STATUS, self.status.as_fd()),
            (ADMIN, self.admin.as_fd()),
            (SDS, self.sds.as_fd()),
            (XDS, self.xds.as_fd()),
        ];
        others.into_iter().chain(names)
    }
}

/// The kept sockets that still fit the plan.
struct Again {
    status: Option<std::net::TcpListener>,
    /// In the order of the addresses.
    names: std::vec::IntoIter<Option<dns::KeptDoor>>,
    admin: Option<KeptListener>,
    sds: Option<KeptListener>,
    xds: Option<KeptListener>,
}

impl Again {
    /// Chooses, and has the service manager forget the others before their addresses are asked for.
    async fn choose(plan: &Plan, listen: &[std::net::SocketAddr], mut kept: Kept) -> Self {
        let paths = &plan.paths;
        let status = kept.tcp(STATUS, plan.status.listen);
        let names: Vec<_> = listen.iter().map(|address| kept.pair(DNS, *address)).collect();
        let admin = unix(&mut kept, ADMIN, &paths.admin_socket()).await;
        let sds = unix(&mut kept, SDS, &paths.sds_socket()).await;
        let xds = unix(&mut kept, XDS, &paths.xds_socket()).await;
        let unwanted = kept.unwanted();
        if !unwanted.is_empty() {
            tracing::info!(?unwanted, "Sockets of an earlier run do not fit any more.");
            for name in unwanted {
                ServiceManager.forget(&name);
            }
            ServiceManager.heard().await;
        }
        Self { status, names: names.into_iter(), admin, sds, xds }
    }
}

/// A socket whose path somebody has removed or taken is of no use.
async fn unix(kept: &mut Kept, name: &str, path: &Path) -> Option<KeptListener> {
    if uds::is_served(path).await { kept.unix(name, path) } else { None }
}

/// The kernel lets go of the lock when the process ends, however it ends.
pub(super) fn lock(paths: &Paths) -> Result<File, StartError> {
    let path = paths.lock_file();
    let failed = |source| FileError { action: "lock", path: path.clone(), source };
    let file = File::options().create(true).write(true).truncate(false).open(&path);
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::Running { path }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source).into()),
    }
}

/// Whether an agent holds the lock.
pub(super) fn is_locked(paths: &Paths) -> bool {
    let file = fsio::open_regular(&paths.lock_file());
    let tried = file.map(|file| file.try_lock());
    matches!(tried, Ok(Err(std::fs::TryLockError::WouldBlock)))
}

/// Names of sockets at the service manager.
const STATUS: &str = "status";
const DNS: &str = "dns";
const ADMIN: &str = "admin";
const SDS: &str = "sds";
const XDS: &str = "xds";
