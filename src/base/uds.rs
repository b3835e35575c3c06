//! Unix sockets: the one way to bind them, and who is on the other end.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

use super::fsio::{self, FileError};

/// Whose processes the kernel lets connect (unix(7)), besides root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Our own user's (mode 0600).
    Owner,
    /// Also those of this group (mode 0660).
    Group(u32),
    /// Everybody's (mode 0666).
    Anyone,
}

/// Binds a Unix socket in a directory that exists, replacing a stale one. Of those within `reach`, [`Peers`] says who may
/// speak.
///
/// # Errors
/// When the directory cannot be written, or the path is too long for a socket (108 bytes).
pub fn bind(path: &Path, reach: Reach) -> Result<UnixListener, FileError> {
    fsio::remove(path)?;
    let failed = |source| FileError { action: "listen at", path: path.to_owned(), source };
    let listener = UnixListener::bind(path).map_err(failed)?;
    open_to(path, reach)?;
    Ok(listener)
}

/// Lets those within `reach` connect, and nobody else.
fn open_to(path: &Path, reach: Reach) -> Result<(), FileError> {
    let failed = |source| FileError { action: "set the mode of", path: path.to_owned(), source };
    let mode = match reach {
        Reach::Owner => 0o600,
        Reach::Anyone => 0o666,
        Reach::Group(gid) => match give_to_group(path, gid) {
            Ok(()) => 0o660,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, gid, %error, "Cannot give a socket to the proxy's group; callers are told apart by their user only.");
                0o666
            }
        },
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

/// A service may not change owners, and need not: its sockets have the group that its unit names.
fn give_to_group(path: &Path, gid: u32) -> std::io::Result<()> {
    if std::fs::metadata(path)?.gid() == gid { Ok(()) } else { chown(path, None, Some(gid)) }
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
pub fn resume(
    kept: Option<KeptListener>,
    path: &Path,
    reach: Reach,
) -> Result<UnixListener, FileError> {
    let Some(kept) = kept else { return bind(path, reach) };
    let failed = |source| FileError { action: "listen at", path: path.to_owned(), source };
    // An earlier version may have opened it to others.
    open_to(path, reach)?;
    UnixListener::from_std(kept).map_err(failed)
}

/// A listening socket that no runtime knows yet.
pub type KeptListener = std::os::unix::net::UnixListener;

/// The users whose processes may speak through a socket; root always may.
#[derive(Clone, Debug)]
pub struct Peers {
    uids: Vec<u32>,
    refused: Arc<Mutex<Refused>>,
}

/// Those that were refused and have not been logged.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    logged: Option<Instant>,
}

impl Peers {
    /// Allows these users besides root.
    #[must_use]
    pub fn new(uids: Vec<u32>) -> Self {
        Self { uids, refused: Arc::default() }
    }

    /// Whether the peer may speak. A refusal is logged, at most once a second: whoever is refused must not fill the log.
    #[must_use]
    pub fn admit(&self, stream: &UnixStream, socket: &'static str) -> bool {
        let Err(uid) = self.check(stream) else { return true };
        if let Some(count) = self.note_refusal() {
            tracing::warn!(
                socket,
                ?uid,
                count,
                "Refused processes of another user at a Unix socket."
            );
        }
        false
    }

    /// How many refusals there were since the last one that was logged, when this one is to be logged.
    fn note_refusal(&self) -> Option<u64> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.count = refused.count.saturating_add(1);
        if refused.logged.is_some_and(|at| at.elapsed() < LOG_PAUSE) {
            return None;
        }
        refused.logged = Some(Instant::now());
        Some(std::mem::take(&mut refused.count))
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

/// Between two lines about refusals.
const LOG_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_the_peer_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(bind(&path, Reach::Owner).unwrap());
        let listener = bind(&path, Reach::Owner).unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let me = nix::unistd::getuid().as_raw();
        assert_eq!(Peers::new(vec![me]).check(&server), Ok(()));
        if me != 0 {
            assert_eq!(Peers::new(vec![]).check(&server), Err(Some(me)));
        }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_socket_is_open_to_those_within_reach_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let group = nix::unistd::getegid().as_raw();
        for (reach, expected) in
            [(Reach::Owner, 0o600), (Reach::Group(group), 0o660), (Reach::Anyone, 0o666)]
        {
            drop(bind(&path, reach).unwrap());
            assert_eq!(mode(&path), expected, "{reach:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_logged_once_a_second_with_their_number() {
        let peers = Peers::new(vec![]);
        assert_eq!(peers.note_refusal(), Some(1));
        for _ in 0..1000 {
            assert_eq!(peers.clone().note_refusal(), None);
        }
        tokio::time::advance(LOG_PAUSE).await;
        assert_eq!(peers.note_refusal(), Some(1001));
    }

    #[tokio::test]
    async fn whoever_came_while_nobody_served_a_kept_socket_is_served_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!is_served(&path).await);
        let kept = bind(&path, Reach::Anyone).unwrap().into_std().unwrap();
        let mut waiting = UnixStream::connect(&path).await.unwrap();
        let listener = resume(Some(kept), &path, Reach::Owner).unwrap();
        assert_eq!(mode(&path), 0o600, "whatever it was before");
        let (mut served, _) = listener.accept().await.unwrap();
        served.write_all(b"!").await.unwrap();
        assert_eq!(waiting.read_u8().await.unwrap(), b'!');
        assert!(is_served(&path).await);
        drop(listener);
        assert!(!is_served(&path).await, "its file alone is nothing");
    }
}
