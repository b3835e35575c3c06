//! Unix sockets: the one way to bind them, and who is on the other end.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};

use super::fsio::{self, FileError};

/// Binds a Unix socket in a directory that exists, replacing a stale one.
///
/// The socket itself is open to all users (mode 0666): its directory and [`Peers`] say who may
/// speak. A process under another user must be able to connect before it can be recognised.
///
/// # Errors
/// When the directory cannot be written, or the path is too long for a socket (108 bytes).
pub fn bind(path: &Path) -> Result<UnixListener, FileError> {
    fsio::remove(path)?;
    let failed = |source| FileError { action: "listen at", path: path.to_owned(), source };
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(listener)
}

/// Whether somebody listens at this path, busy or not. A file whose listener is gone refuses.
pub async fn is_served(path: &Path) -> bool {
    match UnixStream::connect(path).await {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// Goes on with a socket that an earlier process bound at this path, or binds a new one.
///
/// # Errors
/// As [`bind`].
pub fn resume(kept: Option<KeptListener>, path: &Path) -> Result<UnixListener, FileError> {
    let Some(kept) = kept else { return bind(path) };
    let failed = |source| FileError { action: "listen at", path: path.to_owned(), source };
    UnixListener::from_std(kept).map_err(failed)
}

/// A listening socket that no runtime knows yet.
pub type KeptListener = std::os::unix::net::UnixListener;

/// The users whose processes may speak through a socket; root always may.
#[derive(Clone, Debug)]
pub struct Peers {
    uids: Vec<u32>,
}

impl Peers {
    /// Allows these users besides root.
    #[must_use]
    pub fn new(uids: Vec<u32>) -> Self {
        Self { uids }
    }

    /// The peer's user where it may not speak (`None` inside: unknown); `Ok` where it may.
    ///
    /// # Errors
    /// With the refused user, when the kernel could tell it.
    pub fn check(&self, stream: &UnixStream) -> Result<(), Option<u32>> {
        let uid = stream.peer_cred().map_err(|_| None)?.uid();
        if uid == 0 || self.uids.contains(&uid) { Ok(()) } else { Err(Some(uid)) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_the_peer_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let me = nix::unistd::getuid().as_raw();
        assert_eq!(Peers::new(vec![me]).check(&server), Ok(()));
        if me != 0 {
            assert_eq!(Peers::new(vec![]).check(&server), Err(Some(me)));
        }
    }

    #[tokio::test]
    async fn whoever_came_while_nobody_served_a_kept_socket_is_served_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!is_served(&path).await);
        let kept = bind(&path).unwrap().into_std().unwrap();
        let mut waiting = UnixStream::connect(&path).await.unwrap();
        let listener = resume(Some(kept), &path).unwrap();
        let (mut served, _) = listener.accept().await.unwrap();
        served.write_all(b"!").await.unwrap();
        assert_eq!(waiting.read_u8().await.unwrap(), b'!');
        assert!(is_served(&path).await);
        drop(listener);
        assert!(!is_served(&path).await, "its file alone is nothing");
    }
}
