//! Takes queries from one socket and sends their answers. What one client asks for is bounded by what
//! others ask for ([`super::shares`]); a machine that may not ask is refused.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::{Question, Reply, Transport, refused};
use super::exchange::{read_message, write_message};
use super::server::Desk;
use super::shares::Place;
use crate::base::tasks::Tasks;

/// Serves a socket for datagrams until the group stops.
pub(super) async fn serve_datagrams(
    socket: UdpSocket,
    desk: Arc<Desk>,
    tasks: Tasks,
) -> Result<(), Infallible> {
    let stop = tasks.stop_signal();
    let socket = Arc::new(socket);
    let mut buffer = vec![0; DATAGRAM];
    let mut failures = 0;
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = stop.cancelled() => return Ok(()),
        };
        match received {
            Ok((size, from)) => {
                failures = 0;
                let packet = buffer.get(..size).unwrap_or_default();
                take_datagram(&socket, &desk, &tasks, packet, from).await;
            }
            Err(error) => {
                failures = failures_after(failures);
                tracing::debug!(%error, failures, "A datagram could not be received.");
                tokio::time::sleep(pause(failures)).await;
            }
        }
    }
}

async fn take_datagram(
    socket: &Arc<UdpSocket>,
    desk: &Arc<Desk>,
    tasks: &Tasks,
    packet: &[u8],
    from: SocketAddr,
) {
    if !desk.admits(from) {
        if let Some(bytes) = refused(packet) {
            drop(socket.send_to(&bytes, from).await);
        }
        return;
    }
    match desk.look(packet, Transport::Udp) {
        Reply::Answer(bytes) => drop(socket.send_to(&bytes, from).await),
        Reply::Nothing => {}
        Reply::Forward(question) => {
            let Ok(to) = socket.local_addr() else { return };
            let place = desk.waiting.take(desk.admission.client(Transport::Udp, from, to));
            let (desk, socket) = (Arc::clone(desk), Arc::clone(socket));
            tasks.spawn("dns-query", async move {
                // Whoever lost the place gets no answer, and asks again.
                if let Some(bytes) = unless_evicted(&place, &desk, &question, Transport::Udp).await
                {
                    drop(socket.send_to(&bytes, from).await);
                }
            });
        }
    }
}

async fn unless_evicted(
    place: &Place,
    desk: &Desk,
    question: &Question,
    transport: Transport,
) -> Option<Vec<u8>> {
    tokio::select! {
        bytes = desk.forwarder.resolve(question, transport) => Some(bytes),
        () = place.evicted() => {
            desk.ledger.counters.dropped.fetch_add(1, Relaxed);
            None
        }
    }
}

/// Serves a socket for streams until the group stops.
pub(super) async fn serve_streams(
    listener: TcpListener,
    desk: Arc<Desk>,
    tasks: Tasks,
) -> Result<(), Infallible> {
    let stop = tasks.stop_signal();
    let mut failures = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return Ok(()),
        };
        match accepted {
            Ok((stream, from)) => {
                failures = 0;
                take_stream(stream, from, &desk, &tasks);
            }
            Err(error) => {
                failures = failures_after(failures);
                // Once for each time that it begins: an error that lasts does not fill the log.
                if failures == 1 {
                    tracing::warn!(%error, "A DNS stream could not be accepted");
                }
                tokio::time::sleep(pause(failures)).await;
            }
        }
    }
}

fn take_stream(stream: TcpStream, from: SocketAddr, desk: &Arc<Desk>, tasks: &Tasks) {
    let Ok(to) = stream.local_addr() else { return };
    if !desk.admits(from) {
        return;
    }
    let mut place = desk.streams.take(desk.admission.client(Transport::Tcp, from, to));
    let desk = Arc::clone(desk);
    tasks.spawn("dns-stream", async move {
        if let Err(error) = serve_stream(stream, &desk, &mut place).await {
            tracing::trace!(%error, "A stream of queries ended.");
        }
    });
}

/// One query after the other, as many as come.
async fn serve_stream(mut stream: TcpStream, desk: &Desk, place: &mut Place) -> io::Result<()> {
    loop {
        let packet = tokio::select! {
            packet = timeout(IDLE, read_message(&mut stream)) => packet??,
            () = place.evicted() => return Ok(()),
        };
        place.used(true);
        let bytes = match desk.look(&packet, Transport::Tcp) {
            Reply::Answer(bytes) => bytes,
            Reply::Forward(question) => {
                match unless_evicted(place, desk, &question, Transport::Tcp).await {
                    Some(bytes) => bytes,
                    None => return Ok(()),
                }
            }
            Reply::Nothing => return Ok(()),
        };
        tokio::select! {
            written = timeout(IDLE, write_message(&mut stream, &bytes)) => written??,
            () = place.evicted() => return Ok(()),
        }
        place.used(false);
    }
}

impl Desk {
    fn admits(&self, from: SocketAddr) -> bool {
        let admitted = self.admission.admits(from.ip());
        if !admitted {
            self.refusals.count(from.ip().to_canonical());
            self.ledger.counters.refused.fetch_add(1, Relaxed);
        }
        admitted
    }
}

fn failures_after(failures: u32) -> u32 {
    failures.saturating_add(1)
}

/// How long to wait after an error: the first may be of one packet or connection only, one that comes
/// again and again is the socket's.
fn pause(failures: u32) -> Duration {
    PAUSE.saturating_mul(failures.saturating_sub(1)).min(LONGEST_PAUSE)
}

/// No query is larger.
const DATAGRAM: usize = 4096;
/// How long a stream may be silent.
const IDLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_lasts_is_no_busy_loop() {
        let mut failures = 0;
        let mut pauses = Vec::new();
        for _ in 0..1000 {
            failures = failures_after(failures);
            pauses.push(pause(failures));
        }
        assert_eq!(pauses.first(), Some(&Duration::ZERO), "one packet's error stops nobody");
        assert_eq!(pauses.get(1), Some(&PAUSE));
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
    }
}
