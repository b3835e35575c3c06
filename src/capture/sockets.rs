//! Sockets that count as somebody's, to try the rules with: the kernel notes who made them.

use std::io;
use std::net::{IpAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::Owner;
use crate::base::passing;

/// Who makes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Sockets {
    /// This process, which may count as anybody.
    #[default]
    Own,
    /// The launcher behind this Unix socket: a service has no right to be somebody else.
    Launcher(PathBuf),
}

/// Whose socket is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketOrder {
    uid: u32,
    gid: u32,
    ipv6: bool,
}

impl SocketOrder {
    /// Makes it: a TCP socket that is neither bound nor connected. The thread is itself again before
    /// anything else runs on it.
    ///
    /// # Errors
    /// When this process may not count as that user, or the kernel has no socket.
    pub fn make(self) -> io::Result<OwnedFd> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let (own_gid, own_uid) = (setfsgid(gid), setfsuid(uid));
        // Asked again, they tell what they are: neither says that it was refused (setfsuid(2)).
        let is_meant = setfsgid(gid) == gid && setfsuid(uid) == uid;
        let family = if self.ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None);
        setfsuid(own_uid);
        setfsgid(own_gid);
        if is_meant {
            Ok(socket?)
        } else {
            Err(io::Error::other("this process may not count as another user"))
        }
    }
}

impl Sockets {
    /// One that counts as this user's.
    pub(super) async fn of(&self, owner: Owner, towards: IpAddr) -> io::Result<TcpSocket> {
        let order = SocketOrder { uid: owner.uid, gid: owner.gid, ipv6: towards.is_ipv6() };
        let socket = match self {
            Self::Own => order.make()?,
            Self::Launcher(path) => {
                timeout(LIMIT, fetch(path, order)).await.map_err(io::Error::other)??
            }
        };
        Ok(TcpSocket::from_std_stream(TcpStream::from(socket)))
    }
}

async fn fetch(path: &Path, order: SocketOrder) -> io::Result<OwnedFd> {
    let stream = passing::order(path, &order, None)?;
    stream.ready(Interest::READABLE).await?;
    let stream = stream.into_std()?;
    let (_, socket) = passing::receive(&stream, ANSWER_BYTES)?;
    socket.ok_or_else(|| io::Error::other("the launcher made no socket"))
}

/// A service manager that is busy starts a launcher within a second or two.
const LIMIT: Duration = Duration::from_secs(5);
/// A word.
const ANSWER_BYTES: u64 = 16;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn own() -> Owner {
        Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    #[tokio::test]
    async fn the_launchers_socket_can_be_connected_as_one_of_our_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let launcher = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let (line, none) = passing::receive(&stream, 1000).unwrap();
            assert!(none.is_none());
            let order: SocketOrder = serde_json::from_slice(&line).unwrap();
            passing::send(&stream, b"made", Some(order.make().unwrap().as_fd())).unwrap();
            order
        });
        let target = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = target.local_addr().unwrap();
        for sockets in [Sockets::Launcher(path), Sockets::Own] {
            let socket = sockets.of(own(), address.ip()).await.unwrap();
            socket.connect(address).await.unwrap();
            target.accept().await.unwrap();
        }
        let Owner { uid, gid } = own();
        assert_eq!(launcher.join().unwrap(), SocketOrder { uid, gid, ipv6: false });
    }

    #[test]
    fn who_may_not_be_somebody_else_gets_no_socket_of_theirs() {
        // Number 4294967295 is nobody's, and means "do not change" (setfsuid(2)).
        let order = SocketOrder { uid: u32::MAX, gid: u32::MAX, ipv6: false };
        assert!(order.make().unwrap_err().to_string().contains("may not count"));
    }
}
