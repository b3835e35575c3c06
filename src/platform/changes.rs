//! A wake-up whenever the kernel changes addresses, routes or links. What has changed is not read
//! from the messages: who is woken looks for itself (Linux `rtnetlink(7)`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// The kernel's news about the network.
#[derive(Debug)]
pub struct NetworkChanges {
    socket: AsyncFd<OwnedFd>,
}

impl NetworkChanges {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    #[expect(
        deprecated,
        reason = "the newer function has to be promised, in unsafe code, that the descriptor stays \
                  the same and open; an OwnedFd is that promise"
    )]
    pub fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self { socket: AsyncFd::new(socket)? })
    }

    /// Waits for the next change; all that have come meanwhile count as one. It can be dropped and
    /// called again.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            if drain(self.socket.get_ref())? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// Whether there was any message.
fn drain(socket: &OwnedFd) -> io::Result<bool> {
    let mut any = false;
    let mut buffer = [0; MESSAGE_BYTES];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            // More messages than the kernel keeps for us: some are lost, which is news as well.
            Ok(_) | Err(Errno::ENOBUFS) => any = true,
            Err(Errno::EAGAIN) => return Ok(any),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Links, addresses and routes of both families (`linux/rtnetlink.h`: `RTMGRP_LINK`,
/// `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// The rest of a longer message is thrown away by the kernel.
const MESSAGE_BYTES: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks the kernel for its links (`RTM_GETLINK` with `NLM_F_REQUEST | NLM_F_DUMP`): the answer
    /// arrives as news do, and anybody may ask.
    fn make_news(changes: &NetworkChanges) {
        let mut message = [0_u8; 32];
        message[0] = 32;
        message[4] = 18;
        message[6..8].copy_from_slice(&0x301_u16.to_le_bytes());
        let socket = changes.socket.get_ref().as_raw_fd();
        nix::sys::socket::send(socket, &message, MsgFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn news_of_the_kernel_wake_each_time_and_are_taken_whole() {
        let mut changes = NetworkChanges::listen().unwrap();
        for _ in 0..3 {
            make_news(&changes);
            changes.next().await.unwrap();
        }
    }
}
