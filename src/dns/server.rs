//! Takes queries and gives answers. Mesh names are answered where they arrive; a query for the
//! resolvers is a task of its own.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prost::Message as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::Config;
use super::answer::{Reply, Transport, answer_packet};
use super::exchange::{read_message, write_message};
use super::forward::Forwarder;
use super::resolvers::Resolvers;
use super::state::{DnsState, Ledger};
use super::table::Table;
use crate::base::clock::SharedClock;
use crate::base::fsio;
use crate::base::tasks::Tasks;
use crate::base::trouble::chain;
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
}

/// What every query needs.
struct Desk {
    table: RwLock<Arc<Table>>,
    forwarder: Forwarder,
    ledger: Arc<Ledger>,
    /// Queries that wait for a resolver.
    waiting: Arc<Semaphore>,
    /// Streams that are open.
    streams: Arc<Semaphore>,
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
            waiting: Arc::new(Semaphore::new(WAITING)),
            streams: Arc::new(Semaphore::new(STREAMS)),
        });
        if let Some(table) = last_table(&config) {
            desk.set(Table::new(&table, &config.domain), true);
        }
        (Self { config, doors, desk, tasks }, Handle(ledger))
    }

    /// Serves, and takes each new table, for ever.
    ///
    /// # Errors
    /// Never: what fails is a single query.
    pub async fn run(
        self,
        mut names: watch::Receiver<Option<Arc<NameTable>>>,
    ) -> Result<(), Infallible> {
        let stop = self.tasks.stop_signal();
        for (udp, tcp) in self.doors.doors {
            let (desk, tasks) = (Arc::clone(&self.desk), self.tasks.clone());
            self.tasks.essential("dns-datagrams", serve_datagrams(udp, desk, tasks));
            let (desk, tasks) = (Arc::clone(&self.desk), self.tasks.clone());
            self.tasks.essential("dns-streams", serve_streams(tcp, desk, tasks));
        }
        let mut is_new = true;
        loop {
            let table = if is_new { names.borrow_and_update().clone() } else { None };
            if let Some(table) = table {
                self.desk.set(Table::new(&table, &self.config.domain), false);
                keep(&self.config, &table);
                // In a mesh that changes all the time the disk is not written all the time.
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = stop.cancelled() => return Ok(()),
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
                    self.desk.ledger.fade();
                }
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

impl Desk {
    fn set(&self, table: Table, from_disk: bool) {
        self.ledger.table(table.len(), from_disk);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// What becomes of a packet; an answer that is known is there at once.
    fn look(&self, packet: &[u8], transport: Transport) -> Reply {
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

async fn serve_datagrams(socket: UdpSocket, desk: Arc<Desk>, tasks: Tasks) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; DATAGRAM];
    let mut failures = 0_u32;
    loop {
        let (size, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => {
                failures = 0;
                received
            }
            // An earlier answer could not be delivered; the next query has nothing to do with it.
            Err(error) => {
                tracing::debug!(%error, "A datagram could not be received.");
                failures = failures.saturating_add(1);
                // A socket that is broken for good must not keep the processor busy.
                if failures > UNDELIVERED {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let packet = buffer.get(..size).unwrap_or_default();
        match desk.look(packet, Transport::Udp) {
            Reply::Answer(bytes) => drop(socket.send_to(&bytes, from).await),
            Reply::Nothing => {}
            Reply::Forward(question) => {
                // Whoever asks gets no answer and asks again, when this many wait already.
                let Ok(place) = Arc::clone(&desk.waiting).try_acquire_owned() else { continue };
                let (desk, socket) = (Arc::clone(&desk), Arc::clone(&socket));
                tasks.spawn("dns-query", async move {
                    let bytes = desk.forwarder.resolve(&question, Transport::Udp).await;
                    drop(socket.send_to(&bytes, from).await);
                    drop(place);
                });
            }
        }
    }
}

async fn serve_streams(listener: TcpListener, desk: Arc<Desk>, tasks: Tasks) {
    loop {
        let Ok(place) = Arc::clone(&desk.streams).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = Arc::clone(&desk);
                tasks.spawn("dns-stream", async move {
                    if let Err(error) = serve_stream(stream, &desk).await {
                        tracing::trace!(%error, "A stream of queries ended.");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "A stream of queries could not be taken.");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One query after the other, as many as come.
async fn serve_stream(mut stream: TcpStream, desk: &Desk) -> io::Result<()> {
    loop {
        let packet = timeout(IDLE, read_message(&mut stream)).await??;
        let bytes = match desk.look(&packet, Transport::Tcp) {
            Reply::Answer(bytes) => bytes,
            Reply::Forward(question) => desk.forwarder.resolve(&question, Transport::Tcp).await,
            Reply::Nothing => return Ok(()),
        };
        timeout(IDLE, write_message(&mut stream, &bytes)).await??;
    }
}

fn last_table(config: &Config) -> Option<NameTable> {
    let bytes = fsio::read(&config.last_table, TABLE).ok()?;
    match NameTable::decode(bytes.as_slice()) {
        Ok(table) => Some(table),
        Err(error) => {
            tracing::warn!(%error, "The name table of the last run is unreadable.");
            None
        }
    }
}

fn keep(config: &Config, table: &NameTable) {
    if let Err(error) = fsio::replace(&config.last_table, &table.encode_to_vec(), 0o600) {
        tracing::warn!(error = chain(&error), "The name table could not be kept for the next run.");
    }
}

/// No query is larger.
const DATAGRAM: usize = 4096;
/// Queries that may wait for a resolver at one time.
const WAITING: usize = 1024;
/// Streams that may be open at one time.
const STREAMS: usize = 128;
/// How long a stream may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Errors in a row that may be those of earlier answers (udp(7)): the kernel tells each one once.
const UNDELIVERED: u32 = 100;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The shortest time between two tables.
const PAUSE: Duration = Duration::from_millis(500);
/// How often the resolvers' file is looked at when nobody asks.
const LOOK: Duration = Duration::from_secs(5);
/// The largest table that is read.
const TABLE: u64 = 64 * 1024 * 1024;
