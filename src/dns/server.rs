//! Takes queries and gives answers. Mesh names are answered where they arrive; a query for the
//! resolvers is a task of its own.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prost::Message as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Semaphore, watch};

use super::Config;
use super::answer::{Reply, Transport, answer_packet};
use super::clients::{Admission, Refusals};
use super::forward::Forwarder;
use super::resolvers::Resolvers;
use super::serve::{serve_datagrams, serve_streams};
use super::shares::Shares;
use super::state::{DnsState, Ledger};
use super::table::Table;
use crate::base::clock::SharedClock;
use crate::base::fsio;
use crate::base::tasks::{Tasks, offload};
use crate::base::trouble::chain;
use crate::proto::names::{self, Names};
use crate::proto::nds::NameTable;

/// Sockets that queries arrive at.
#[derive(Debug)]
pub struct Doors {
    pub(super) doors: Vec<(UdpSocket, TcpListener)>,
}

/// The sockets of one address that an earlier process opened.
pub type KeptDoor = (std::net::UdpSocket, std::net::TcpListener);

/// An address that cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address} for DNS")]
pub struct OpenError {
    /// The address.
    pub address: SocketAddr,
    /// What the kernel said.
    #[source]
    source: io::Error,
}

impl Doors {
    /// Opens each address by UDP and TCP, or goes on with the sockets that are `kept` for it. One of
    /// IPv6 is skipped on a host without IPv6.
    ///
    /// # Errors
    /// With the address that is taken or not ours.
    pub async fn open(
        listen: &[SocketAddr],
        mut kept: impl FnMut(SocketAddr) -> Option<KeptDoor>,
    ) -> Result<Self, OpenError> {
        let mut doors = Vec::new();
        for &address in listen {
            match open(address, kept(address)).await {
                Ok(door) => doors.push(door),
                Err(error) if address.is_ipv6() && lacks_ipv6(&error) => {}
                Err(source) => return Err(OpenError { address, source }),
            }
        }
        Ok(Self { doors })
    }

    /// Where queries arrive.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.doors.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect()
    }

    /// The sockets, by UDP and TCP for each address.
    pub fn sockets(&self) -> impl Iterator<Item = (BorrowedFd<'_>, BorrowedFd<'_>)> {
        self.doors.iter().map(|(udp, tcp)| (udp.as_fd(), tcp.as_fd()))
    }
}

async fn open(address: SocketAddr, kept: Option<KeptDoor>) -> io::Result<(UdpSocket, TcpListener)> {
    if let Some((udp, tcp)) = kept {
        return Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?));
    }
    let udp = UdpSocket::bind(address).await?;
    let tcp = TcpListener::bind(udp.local_addr()?).await?;
    Ok((udp, tcp))
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}

/// Asks the room how it is. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Ledger>);

impl Handle {
    /// Wakes at changes of the table and of what is wrong.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<DnsState> {
        self.0.watch()
    }

    /// The state now.
    #[must_use]
    pub fn snapshot(&self) -> DnsState {
        self.0.snapshot()
    }
}

/// One DNS proxy.
pub struct Server {
    config: Config,
    doors: Doors,
    desk: Arc<Desk>,
    tasks: Tasks,
    /// The right to write the table to disk.
    keeping: Arc<Semaphore>,
}

/// What every query needs.
pub(super) struct Desk {
    table: RwLock<Arc<Table>>,
    pub(super) forwarder: Forwarder,
    pub(super) ledger: Arc<Ledger>,
    pub(super) admission: Admission,
    pub(super) refusals: Refusals,
    /// Queries that wait for a resolver.
    pub(super) waiting: Arc<Shares>,
    /// Streams that are open.
    pub(super) streams: Arc<Shares>,
}

impl Server {
    /// A server with the table of the last run, and the way to ask how it is.
    #[must_use]
    pub fn new(config: Config, doors: Doors, clock: SharedClock, tasks: Tasks) -> (Self, Handle) {
        let listen = doors.addresses();
        let ledger = Arc::new(Ledger::new(listen.clone(), clock));
        let resolvers = Resolvers::new(config.upstreams.clone(), listen);
        let desk = Arc::new(Desk {
            table: RwLock::default(),
            forwarder: Forwarder::new(resolvers, Arc::clone(&ledger)),
            ledger: Arc::clone(&ledger),
            admission: Admission::new(config.allow_from.clone()),
            refusals: Refusals::default(),
            waiting: Shares::new(WAITING, WAITING),
            streams: Shares::new(STREAMS, STREAMS_EACH),
        });
        if let Some(table) = last_table(&config) {
            desk.set(&table, &config.domain, true);
        }
        let keeping = Arc::new(Semaphore::new(1));
        (Self { config, doors, desk, tasks, keeping }, Handle(ledger))
    }

    /// Serves, and takes each new table, for ever.
    ///
    /// # Errors
    /// Never: what fails is a single query.
    pub async fn run(
        mut self,
        mut names: watch::Receiver<Option<Arc<Names>>>,
    ) -> Result<(), Infallible> {
        let stop = self.tasks.stop_signal();
        for (udp, tcp) in std::mem::take(&mut self.doors.doors) {
            let (desk, tasks) = (Arc::clone(&self.desk), self.tasks.clone());
            self.tasks.critical("dns-datagrams", serve_datagrams(udp, desk, tasks));
            let (desk, tasks) = (Arc::clone(&self.desk), self.tasks.clone());
            self.tasks.critical("dns-streams", serve_streams(tcp, desk, tasks));
        }
        let desk = Arc::clone(&self.desk);
        self.tasks
            .essential("dns-resolvers", async move { desk.forwarder.probe_resolvers().await });
        let mut is_new = true;
        loop {
            let table = if is_new { names.borrow_and_update().clone() } else { None };
            if let Some(table) = table {
                self.desk.set(&table, &self.config.domain, false);
                self.keep(table);
                // In a mesh that changes all the time the disk is not written all the time.
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = stop.cancelled() => break,
                }
            }
            tokio::select! {
                changed = names.changed() => match changed {
                    Ok(()) => is_new = true,
                    Err(_) => stop.cancelled().await,
                },
                // Also when nobody asks, what is told of the resolvers is true.
                () = tokio::time::sleep(LOOK) => {
                    is_new = false;
                    self.desk.forwarder.with_search(|_| ());
                    self.desk.refusals.log();
                }
                () = stop.cancelled() => break,
            }
        }
        // A table that is being kept is not cut short.
        drop(self.keeping.acquire().await);
        Ok(())
    }
}

impl Server {
    /// Keeps a table for the next run, on another thread. While the disk is still busy with an earlier
    /// one it is left out.
    fn keep(&self, table: Arc<Names>) {
        let Ok(turn) = Arc::clone(&self.keeping).try_acquire_owned() else { return };
        let path = self.config.last_table.clone();
        let kept = offload(move || {
            keep(&path, &table.table);
            drop(turn);
        });
        self.tasks.spawn("dns-table", async move { drop(kept.await) });
    }
}

impl Desk {
    fn set(&self, names: &Names, domain: &str, from_disk: bool) {
        let table = Table::new(&names.table, domain);
        self.ledger.table(table.len(), from_disk, names.left_out.and(table.left_out()));
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// What becomes of a packet; an answer that is known is there at once.
    pub(super) fn look(&self, packet: &[u8], transport: Transport) -> Reply {
        self.ledger.counters.queries.fetch_add(1, Relaxed);
        let table = Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner));
        let reply =
            self.forwarder.with_search(|search| answer_packet(&table, search, packet, transport));
        match reply {
            Reply::Forward(question) => match self.forwarder.remembered(&question) {
                Some(bytes) => Reply::Answer(bytes),
                None => Reply::Forward(question),
            },
            Reply::Answer(bytes) => {
                self.ledger.counters.answered.fetch_add(1, Relaxed);
                Reply::Answer(bytes)
            }
            Reply::Nothing => Reply::Nothing,
        }
    }
}

fn last_table(config: &Config) -> Option<Names> {
    let bytes = fsio::read(&config.last_table, TABLE).ok()?;
    match Names::decode(&bytes) {
        Ok(table) => Some(table),
        Err(error) => {
            tracing::warn!(%error, "The name table of the last run is unreadable.");
            None
        }
    }
}

fn keep(path: &Path, table: &NameTable) {
    if let Err(error) = fsio::replace(path, &table.encode_to_vec(), 0o600) {
        tracing::warn!(error = chain(&error), "The name table could not be kept for the next run.");
    }
}

/// Queries that may wait for a resolver at one time.
const WAITING: usize = 1024;
/// Streams that may be open at one time, of all clients and of one.
const STREAMS: usize = 256;
const STREAMS_EACH: usize = 64;
/// The shortest time between two tables.
const PAUSE: Duration = Duration::from_millis(500);
/// How often the resolvers' file is looked at when nobody asks.
const LOOK: Duration = Duration::from_secs(5);
/// The largest table that is read: as large as one that is kept can be.
const TABLE: u64 = names::BYTES as u64;
