//! Sockets that an earlier run left with the service manager (its file descriptor store): while
//! nobody served them, connections and queries waited there.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{SocketType, sockopt};

/// Sockets with their names, none of which is in use yet.
#[derive(Debug, Default)]
pub struct Kept {
    sockets: Vec<(String, OwnedFd)>,
}

impl Kept {
    /// Takes what the service manager has passed to this process (sd_listen_fds(3)), once: a
    /// second call finds nothing. Programs that are started later do not inherit it.
    #[must_use]
    pub fn take() -> Self {
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Self::default();
        }
        let sockets = match sd_listen_fds::get() {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::warn!(%error, "What the service manager passed to us is not used.");
                return Self::default();
            }
        };
        let owned = sockets.into_iter().filter_map(|(name, socket)| {
            let socket = socket.into_std();
            rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).ok()?;
            Some((name.unwrap_or_default(), socket))
        });
        Self { sockets: owned.collect() }
    }

    /// The TCP socket of this name that listens at this very address.
    pub fn tcp(&mut self, name: &str, address: SocketAddr) -> Option<TcpListener> {
        let socket = self.find(name, |socket| {
            listens(&socket) && TcpListener::from(socket).local_addr().ok() == Some(address)
        })?;
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true).ok()?;
        Some(listener)
    }

    /// The UDP and the TCP socket of this name at this very address; one alone is of no use.
    pub fn pair(&mut self, name: &str, address: SocketAddr) -> Option<(UdpSocket, TcpListener)> {
        let is_udp = |socket: OwnedFd| {
            is(&socket, SocketType::DGRAM)
                && UdpSocket::from(socket).local_addr().ok() == Some(address)
        };
        let at = self.position(name, is_udp)?;
        let tcp = self.tcp(name, address)?;
        // The other one stood before or behind it.
        let at = self.position(name, is_udp).unwrap_or(at);
        let udp = UdpSocket::from(self.sockets.swap_remove(at).1);
        udp.set_nonblocking(true).ok()?;
        Some((udp, tcp))
    }

    /// The Unix socket of this name that listens at this path. Whether the path still leads to it
    /// is for the caller to find out.
    pub fn unix(&mut self, name: &str, path: &Path) -> Option<UnixListener> {
        let socket = self.find(name, |socket| {
            let at = |listener: UnixListener| {
                listener.local_addr().ok()?.as_pathname().map(|found| found == path)
            };
            listens(&socket) && at(UnixListener::from(socket)) == Some(true)
        })?;
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true).ok()?;
        Some(listener)
    }

    /// The names of the sockets that nobody wanted, which are closed.
    #[must_use]
    pub fn unwanted(self) -> Vec<String> {
        let mut names: Vec<String> = self.sockets.into_iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn find(&mut self, name: &str, fits: impl Fn(OwnedFd) -> bool) -> Option<OwnedFd> {
        let at = self.position(name, fits)?;
        Some(self.sockets.swap_remove(at).1)
    }

    fn position(&self, name: &str, fits: impl Fn(OwnedFd) -> bool) -> Option<usize> {
        self.sockets.iter().position(|(found, socket)| {
            // Looked at by way of a copy: the address is told by the type that owns the socket.
            found == name && socket.try_clone().is_ok_and(&fits)
        })
    }
}

fn listens(socket: &OwnedFd) -> bool {
    is(socket, SocketType::STREAM) && sockopt::socket_acceptconn(socket) == Ok(true)
}

fn is(socket: &OwnedFd, kind: SocketType) -> bool {
    sockopt::socket_type(socket) == Ok(kind)
}

/// The descriptors that are passed have one owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(sockets: Vec<(&str, OwnedFd)>) -> Kept {
        let sockets = sockets.into_iter().map(|(name, socket)| (name.to_owned(), socket));
        Kept { sockets: sockets.collect() }
    }

    #[test]
    fn a_socket_is_used_again_only_where_name_kind_and_address_fit() {
        let (udp, tcp) = both("127.0.0.1:0");
        let address = tcp.local_addr().unwrap();
        let mut kept = kept(vec![("status", tcp.into()), ("admin", udp.into())]);
        let other = SocketAddr::new([127, 0, 0, 2].into(), address.port());
        assert!(kept.tcp("other", address).is_none(), "another name");
        assert!(kept.tcp("status", other).is_none(), "another address");
        assert!(kept.tcp("admin", address).is_none(), "another kind");
        assert_eq!(kept.tcp("status", address).unwrap().local_addr().unwrap(), address);
        assert!(kept.tcp("status", address).is_none(), "it is there once");
        assert_eq!(kept.unwanted(), ["admin"]);
    }

    #[test]
    fn an_address_for_names_is_used_again_with_both_of_its_sockets_or_not_at_all() {
        let (udp, tcp) = both("127.0.0.1:0");
        let (lonely, _) = both("127.0.0.1:0");
        let (address, half) = (tcp.local_addr().unwrap(), lonely.local_addr().unwrap());
        let sockets: Vec<(&str, OwnedFd)> =
            vec![("dns", lonely.into()), ("dns", udp.into()), ("dns", tcp.into())];
        let mut kept = kept(sockets);
        assert!(kept.pair("dns", half).is_none());
        let (udp, tcp) = kept.pair("dns", address).unwrap();
        assert_eq!((udp.local_addr().unwrap(), tcp.local_addr().unwrap()), (address, address));
        assert_eq!(kept.unwanted(), ["dns"], "the lonely one");
    }

    fn both(address: &str) -> (UdpSocket, TcpListener) {
        let tcp = TcpListener::bind(address).unwrap();
        (UdpSocket::bind(tcp.local_addr().unwrap()).unwrap(), tcp)
    }

    #[test]
    fn a_connection_that_is_no_listener_is_not_used() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let address = stream.local_addr().unwrap();
        assert!(kept(vec![("status", stream.into())]).tcp("status", address).is_none());
    }

    #[test]
    fn a_unix_socket_is_known_by_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        let mut kept = kept(vec![("admin", UnixListener::bind(&one).unwrap().into())]);
        assert!(kept.unix("admin", &two).is_none());
        assert!(kept.unix("admin", &one).is_some());
    }
}
