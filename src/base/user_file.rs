//! Files whose paths another party names, opened with the rights of the user that gets the content,
//! and only below directories that the configuration allows. It never opens such a path as root.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{Mode, OFlags};
use rustix::thread::set_thread_groups;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

use super::fsio::{self, not_regular};
use super::passing;
use super::tasks::offload;

/// A file to open, and the limits of who asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileOrder {
    /// The file. It may be a symbolic link.
    pub file: PathBuf,
    /// User and group with whose rights it is opened; `None` for those of this process.
    pub user: Option<(u32, u32)>,
    /// Directories below which the file must be, by its name and behind all links. Without any, every
    /// place will do.
    pub allowed: Vec<PathBuf>,
    /// Directories below which it must not be, whatever is allowed.
    pub refused: Vec<PathBuf>,
}

/// Why a file is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum OpenError {
    /// Its name leads to a place that is not allowed.
    #[error("{found:?} is not below an allowed directory")]
    Outside {
        /// Where it is, behind all links.
        found: String,
    },
    /// The user has no right to it, it does not exist, or it is not a regular file.
    #[error("{why}")]
    Unreadable {
        /// What the kernel said.
        why: String,
    },
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable { why: error.to_string() }
    }
}

impl From<rustix::io::Errno> for OpenError {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl FileOrder {
    /// Whether the name alone is allowed: absolute, without `..`, below an allowed directory. Nothing
    /// is opened or looked at for it.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_name(&self) -> Result<(), OpenError> {
        let is_plain = self.file.is_absolute()
            && self.file.components().all(|part| !matches!(part, Component::ParentDir));
        if is_plain && self.allows(&self.file, &self.allowed) {
            return Ok(());
        }
        Err(OpenError::Outside { found: self.file.to_string_lossy().into_owned() })
    }

    fn allows(&self, place: &Path, allowed: &[PathBuf]) -> bool {
        let is_below = |directory: &PathBuf| place.starts_with(directory);
        let is_allowed = allowed.is_empty() || allowed.iter().any(is_below);
        // Files of the kernel are about whoever opens them.
        let is_kernels = NEVER.iter().any(|directory| place.starts_with(directory));
        is_allowed && !is_kernels && !self.refused.iter().any(is_below)
    }

    /// Opens it for reading. It may block for as long as the file system does.
    ///
    /// # Errors
    /// When it may not be opened, or is not a regular file.
    pub fn open(&self) -> Result<File, OpenError> {
        self.check_name()?;
        // On a thread that ends with it: its rights are never given back, so that no error on that
        // way can leave another thread with them.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || {
                self.user.map_or(Ok(()), become_user)?;
                self.open_as_we_are()
            })?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked").into()))
        })
    }

    fn open_as_we_are(&self) -> Result<File, OpenError> {
        // O_PATH resolves the name and touches nothing: opening a device may have an effect.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let place = File::from(rustix::fs::open(&self.file, flags, Mode::empty())?);
        let kind = place.metadata()?.file_type();
        let opened = format!("/proc/self/fd/{}", place.as_fd().as_raw_fd());
        let resolved = std::fs::read_link(&opened)?;
        let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        let allowed: Vec<PathBuf> = self.allowed.iter().map(real).collect();
        if !self.allows(&resolved, &allowed) {
            return Err(OpenError::Outside { found: resolved.to_string_lossy().into_owned() });
        }
        if !kind.is_file() {
            return Err(not_regular(kind).into());
        }
        // Through the descriptor: the name may lead elsewhere by now.
        let file = fsio::open_regular(Path::new(&opened));
        file.map_err(|error| OpenError::from(error.source))
    }
}

/// Gives the current thread the rights of a user in the file system, and nobody's groups. The kernel
/// takes the capabilities that go past file modes from the thread when its user is not root's any
/// more (capabilities(7)).
fn become_user((uid, gid): (u32, u32)) -> Result<(), OpenError> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[]).map_err(|error| refused(io::Error::from(error)))?;
    setfsgid(gid);
    setfsuid(uid);
    // Asked again, they tell what they are: neither says that it was refused (setfsuid(2)).
    if setfsgid(gid) == gid && setfsuid(uid) == uid {
        Ok(())
    } else {
        Err(refused(io::ErrorKind::PermissionDenied.into()))
    }
}

fn refused(error: io::Error) -> OpenError {
    OpenError::Unreadable { why: format!("this process may not act as the proxy's user: {error}") }
}

/// Who opens files with another user's rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opener {
    /// This process, which is root with all capabilities, or opens files as itself.
    Own,
    /// The launcher behind this Unix socket: a service cannot act as another user.
    Launcher(Arc<Path>),
}

impl Opener {
    /// Opens a file. It waits for as long as the file system does: the caller limits the wait.
    ///
    /// # Errors
    /// As [`FileOrder::open`], or when there is no launcher.
    pub async fn open(&self, order: FileOrder) -> Result<File, OpenError> {
        match self {
            Self::Own => offload(move || order.open()).await?,
            Self::Launcher(_) if order.user.is_none() => offload(move || order.open()).await?,
            Self::Launcher(socket) => fetch(socket, &order).await,
        }
    }
}

async fn fetch(socket: &Path, order: &FileOrder) -> Result<File, OpenError> {
    let stream = passing::order(socket, order, None)?;
    stream.ready(Interest::READABLE).await?;
    let stream = stream.into_std()?;
    let (line, file) = passing::receive(&stream, ANSWER_BYTES)?;
    let answer: Result<(), OpenError> = serde_json::from_slice(&line).map_err(io::Error::from)?;
    answer?;
    file.map(File::from).ok_or_else(|| io::Error::other("the launcher opened no file").into())
}

/// Serves an order on the side of the launcher, which has the right to become any user: nothing is
/// opened as root by it.
///
/// # Errors
/// When the other end is gone.
pub fn answer(stream: &std::os::unix::net::UnixStream, order: &FileOrder) -> io::Result<()> {
    let is_root = order.user.is_none_or(|(uid, gid)| uid == 0 || gid == 0);
    let opened = if is_root {
        Err(OpenError::Unreadable { why: "the launcher opens no file as root".to_owned() })
    } else {
        order.open()
    };
    let answer = serde_json::to_vec(&opened.as_ref().map(drop))?;
    passing::send(stream, &answer, opened.ok().as_ref().map(AsFd::as_fd))
}

const NEVER: [&str; 3] = ["/dev", "/proc", "/sys"];
/// An error with a path.
const ANSWER_BYTES: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::base::fsio::{PUBLIC, SECRET, make_directory, make_pipe, replace};

    struct Bed {
        _directory: tempfile::TempDir,
        allowed: PathBuf,
        state: PathBuf,
    }

    impl Bed {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            make_directory(directory.path(), 0o755).unwrap();
            let root = directory.path().canonicalize().unwrap();
            let (allowed, state) = (root.join("certs"), root.join("certs/state"));
            for directory in [&allowed, &state] {
                make_directory(directory, 0o755).unwrap();
            }
            Self { _directory: directory, allowed, state }
        }

        fn order(&self, file: &Path, user: Option<(u32, u32)>) -> FileOrder {
            let (allowed, refused) = (vec![self.allowed.clone()], vec![self.state.clone()]);
            FileOrder { file: file.to_owned(), user, allowed, refused }
        }

        fn put(&self, name: &str, mode: u32) -> PathBuf {
            let path = self.allowed.join(name);
            replace(&path, name.as_bytes(), mode).unwrap();
            path
        }
    }

    fn words(opened: Result<File, OpenError>) -> String {
        opened.err().map_or_else(|| "opened".to_owned(), |error| error.to_string())
    }

    #[test]
    fn a_file_below_an_allowed_directory_is_opened_and_nothing_else_is() {
        let bed = Bed::new();
        let good = bed.put("good", PUBLIC);
        let secret = bed.put("state/secret", PUBLIC);
        let link = |name: &str, to: &Path| {
            let path = bed.allowed.join(name);
            symlink(to, &path).unwrap();
            path
        };
        let inside = link("inside", &good);
        let mut text = String::new();
        bed.order(&inside, None).open().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "good");
        let pipe = bed.allowed.join("pipe");
        make_pipe(&pipe).unwrap();
        let outside = "is not below an allowed directory";
        let cases = [
            (secret.clone(), outside),
            (link("to-state", &secret), outside),
            (link("to-etc", Path::new("/etc/passwd")), outside),
            (link("to-device", Path::new("/dev/zero")), outside),
            (link("to-proc", Path::new("/proc/self/environ")), outside),
            (bed.allowed.join("../certs/good"), outside),
            (PathBuf::from("certs/good"), outside),
            (PathBuf::from("/etc/passwd"), outside),
            (PathBuf::from("/dev/zero"), outside),
            (pipe, "found a named pipe"),
            (bed.allowed.clone(), "found a directory"),
            (bed.allowed.join("none"), "No such file"),
        ];
        for (path, expected) in cases {
            let said = words(bed.order(&path, None).open());
            assert!(said.contains(expected), "{}: {said}", path.display());
        }
        let everywhere = FileOrder { allowed: vec!["/".into()], ..bed.order(&secret, None) };
        assert!(words(everywhere.open()).contains(outside), "the state directory is never allowed");
    }

    #[test]
    fn a_file_is_opened_with_the_rights_of_the_user_and_of_nobody_else() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let bed = Bed::new();
        let (open, closed) = (bed.put("open", PUBLIC), bed.put("closed", SECRET));
        let nobody = Some((65_534, 65_534));
        assert_eq!(words(bed.order(&open, nobody).open()), "opened");
        assert!(words(bed.order(&closed, nobody).open()).contains("Permission denied"));
        assert_eq!(words(bed.order(&closed, None).open()), "opened", "this thread is as it was");
    }

    #[tokio::test]
    async fn a_launchers_file_arrives_and_so_does_its_refusal() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let bed = Bed::new();
        let good = bed.put("good", PUBLIC);
        let path = bed.allowed.join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let launcher = tokio::task::spawn_blocking(move || {
            for _ in 0..4 {
                let (stream, _) = listener.accept().unwrap();
                let (line, _) = passing::receive(&stream, 10_000).unwrap();
                answer(&stream, &serde_json::from_slice(&line).unwrap()).unwrap();
            }
        });
        let opener = Opener::Launcher(path.into());
        let mut text = String::new();
        let nobody = Some((65_534, 65_534));
        let mut file = opener.open(bed.order(&good, nobody)).await.unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "good");
        let error = opener.open(bed.order(&bed.allowed.join("none"), nobody)).await;
        assert!(words(error).contains("No such file"));
        for root in [(0, 65_534), (65_534, 0)] {
            let error = opener.open(bed.order(&good, Some(root))).await;
            assert!(words(error).contains("as root"));
        }
        launcher.await.unwrap();
    }
}
