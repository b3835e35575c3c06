//! The connections of the status server: how many there are, how long each may take, and which one
//! makes room for a new one. Callers are strangers, so that nothing here grows with their number.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::caller::Connection;
use crate::base::socket_owner::owner_of;
use crate::base::tasks::Tasks;

/// Serves these pages until the tasks stop. Requests that are open then are dropped.
///
/// # Errors
/// Never: what fails is a single connection.
pub(super) async fn serve(
    listener: TcpListener,
    pages: Router,
    tasks: Tasks,
) -> Result<(), io::Error> {
    let stop = tasks.stop_signal();
    let (local, others) = (Pool::new(FROM_HERE), Pool::new(FROM_ELSEWHERE));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return Ok(()),
        };
        let (stream, connection) = match accepted.and_then(with_ends) {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "A connection to the status port could not be taken.");
                // Out of file descriptors, most likely: trying at once would only burn the processor.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let is_here = connection.peer.ip().to_canonical().is_loopback();
        let pool = if is_here { &local } else { &others };
        // One for which there is no place is closed.
        if let Some(place) = pool.enter(Origin::of(connection)) {
            let pages = pages.clone();
            tasks.spawn("status-connection", serve_one(stream, connection, pages, place));
        }
        // Those that were taken have their turn before they make room for others.
        tokio::task::yield_now().await;
    }
}

fn with_ends(accepted: (TcpStream, std::net::SocketAddr)) -> io::Result<(TcpStream, Connection)> {
    let (stream, peer) = accepted;
    let local = stream.local_addr()?;
    Ok((stream, Connection { peer, local }))
}

async fn serve_one(stream: TcpStream, connection: Connection, pages: Router, place: Place) {
    let end = place.slot.end.clone();
    let slot = Arc::clone(&place.slot);
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = Busy::begin(&slot);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(connection);
        let answer = pages.clone().oneshot(request);
        async move {
            let answer: Result<Response<Body>, Infallible> = answer.await;
            answer.map(|answer| answer.map(|body| Answer { body, _busy: busy }))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(HEAD_BYTES);
    tokio::select! {
        served = http.serve_connection(TokioIo::new(stream), service) => {
            if let Err(error) = served {
                tracing::trace!(%error, "A connection to the status port ended.");
            }
        }
        () = end.cancelled() => {}
    }
    drop(place);
}

/// Places for connections of one kind of callers.
#[derive(Clone)]
struct Pool {
    slots: Arc<Mutex<Vec<Arc<Slot>>>>,
    size: usize,
}

/// Whose connections count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// A user of this machine.
    User(u32),
    /// A host; with IPv6 the network of 64 bits that a host has to itself.
    Network(IpAddr),
}

impl Origin {
    fn of(connection: Connection) -> Self {
        let ip = connection.peer.ip().to_canonical();
        let owner = || owner_of(connection.peer, connection.local).ok().flatten();
        match ip.is_loopback().then(owner).flatten() {
            Some(uid) => Self::User(uid),
            None => Self::network(ip),
        }
    }

    fn network(ip: IpAddr) -> Self {
        Self::Network(match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}

/// One connection.
struct Slot {
    from: Origin,
    /// Whether an answer is under way, and since when that is so.
    state: Mutex<(bool, Instant)>,
    end: CancellationToken,
}

impl Pool {
    fn new(size: usize) -> Self {
        Self { slots: Arc::default(), size }
    }

    /// A place; when all are taken, the one that has waited longest for a request is closed, of the
    /// caller that holds most. `None` when all are at work.
    fn enter(&self, from: Origin) -> Option<Place> {
        let state = Mutex::new((false, Instant::now()));
        let slot = Arc::new(Slot { from, state, end: CancellationToken::new() });
        let mut slots = locked(&self.slots);
        if slots.len() >= self.size {
            let at = self.victim(&slots)?;
            let victim = slots.remove(at);
            victim.end.cancel();
        }
        slots.push(Arc::clone(&slot));
        drop(slots);
        Some(Place { pool: self.clone(), slot })
    }

    fn victim(&self, slots: &[Arc<Slot>]) -> Option<usize> {
        let held = |slot: &Slot| slots.iter().filter(|other| other.from == slot.from).count();
        let rank = |(at, slot): (usize, &Arc<Slot>)| {
            let (busy, since) = *locked(&slot.state);
            let is_at_work = busy && since.elapsed() < WORK_LIMIT;
            // Answers are interrupted only for a caller that holds many of the places.
            let may_go = !is_at_work || held(slot) > self.size / 4;
            may_go.then_some(((is_at_work, std::cmp::Reverse(held(slot)), since), at))
        };
        slots.iter().enumerate().filter_map(rank).min().map(|(_, at)| at)
    }
}

/// A place that is free again when this is dropped.
struct Place {
    pool: Pool,
    slot: Arc<Slot>,
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.pool.slots).retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

/// An answer that is under way, until this is dropped.
struct Busy(Arc<Slot>);

impl Busy {
    fn begin(slot: &Arc<Slot>) -> Self {
        *locked(&slot.state) = (true, Instant::now());
        Self(Arc::clone(slot))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *locked(&self.0.state) = (false, Instant::now());
    }
}

/// A body with what ends when it has been sent.
struct Answer {
    body: Body,
    _busy: Busy,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connections at one time from this machine, and from others: probes, a scraper or two, a browser.
const FROM_HERE: usize = 24;
const FROM_ELSEWHERE: usize = 40;
/// How long a head may take, from the connection's begin or the answer before: also how long a
/// connection may be idle.
const HEAD_LIMIT: Duration = Duration::from_secs(15);
/// The largest head, with its buffer; the server's own is 400 KiB.
const HEAD_BYTES: usize = 16 << 10;
/// After this an answer is late: a scrape has 30 s.
const WORK_LIMIT: Duration = Duration::from_secs(40);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Origin {
        Origin::network(text.parse().unwrap())
    }

    fn is_closed(place: &Place) -> bool {
        place.slot.end.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_pool_closes_what_has_waited_longest_of_whoever_holds_most() {
        let pool = Pool::new(4);
        let early = pool.enter(ip("10.0.0.1")).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let flood: Vec<_> = (0..3).map(|_| pool.enter(ip("10.0.0.2")).unwrap()).collect();
        let next = pool.enter(ip("10.0.0.3")).unwrap();
        assert!(!is_closed(&early) && !is_closed(&next));
        assert_eq!(flood.iter().filter(|place| is_closed(place)).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_under_way_is_not_interrupted_for_others_unless_it_is_late() {
        let pool = Pool::new(4);
        let places: Vec<_> =
            (1..5).map(|host| pool.enter(ip(&format!("10.0.0.{host}"))).unwrap()).collect();
        let busy: Vec<_> = places.iter().map(|place| Busy::begin(&place.slot)).collect();
        assert!(pool.enter(ip("10.0.0.5")).is_none());
        tokio::time::advance(WORK_LIMIT).await;
        assert!(pool.enter(ip("10.0.0.5")).is_some());
        drop(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_holds_many_places_with_slow_answers_loses_one() {
        let pool = Pool::new(4);
        let places: Vec<_> =
            (0..4).map(|host| pool.enter(ip(&format!("fd00::{host}"))).unwrap()).collect();
        let _busy: Vec<_> = places.iter().map(|place| Busy::begin(&place.slot)).collect();
        assert!(pool.enter(ip("10.0.0.5")).is_some());
        assert_eq!(places.iter().filter(|place| is_closed(place)).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_who_takes_all_places_displaces_nobody_else() {
        let pool = Pool::new(4);
        let other = pool.enter(Origin::User(0)).unwrap();
        let flood: Vec<_> = (0..1000).map(|_| pool.enter(Origin::User(65_534)).unwrap()).collect();
        assert!(!is_closed(&other));
        assert_eq!(flood.iter().filter(|place| !is_closed(place)).count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_when_its_connection_has_ended() {
        let pool = Pool::new(1);
        let first = pool.enter(ip("10.0.0.1")).unwrap();
        let _busy = Busy::begin(&first.slot);
        assert!(pool.enter(ip("10.0.0.1")).is_some(), "it holds all of them");
        drop(first);
        assert!(pool.enter(ip("10.0.0.2")).is_some());
        assert!(locked(&pool.slots).is_empty());
    }
}
