//! Placing what a join needs: checked before, undone when a later step fails, wiped by `leave`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use crate::base::fsio::{self, FileError};
use crate::identity::Claims;

/// What is placed, and where.
#[derive(Debug)]
pub struct Files {
    /// `config.yaml` and its text.
    pub config: (PathBuf, String),
    /// The mesh's roots, which the agent replaces when the mesh gets others.
    pub root_cert: Option<(PathBuf, String)>,
    /// Where the roots of the last source are kept, to tell whether those of this one are new.
    pub root_record: PathBuf,
    /// The roots of the Kubernetes API.
    pub kube_ca: Option<(PathBuf, String)>,
    /// The token for istiod.
    pub token: Option<(PathBuf, SecretString)>,
    /// The token for the Kubernetes API, which the agent renews in its place.
    pub kube_token: Option<(PathBuf, SecretString)>,
    /// A directory for state, mode 0700.
    pub state_directory: PathBuf,
    /// A directory for sockets and what lives as long as the agent, mode 0755.
    pub run_directory: PathBuf,
    /// The identity, which is the agent's to write: on a machine that has joined, undoing brings
    /// back the one from before.
    pub identity: PathBuf,
}

impl Files {
    /// How a configuration begins that `join` has written.
    pub const CONFIG_HEAD: &str = "# Written by `vm-agent join`; see `vm-agent config show`.\n";

    /// The token for the Kubernetes API, unless the one that is there was made after it and lives
    /// longer: joining again with an old source must not take back what was renewed since.
    #[must_use]
    pub fn new_kube_token(&self) -> Option<(&Path, &SecretString)> {
        unless_newer(self.kube_token.as_ref()?)
    }

    /// The token for istiod, likewise: somebody may have mended a machine by hand.
    #[must_use]
    pub fn new_token(&self) -> Option<(&Path, &SecretString)> {
        unless_newer(self.token.as_ref()?)
    }

    /// The mesh's roots, unless the last source had the same: the agent may have got newer ones
    /// from the mesh since.
    #[must_use]
    pub fn new_root_cert(&self) -> Option<(&Path, &str)> {
        let (path, pem) = self.root_cert.as_ref()?;
        let last = fsio::read_text(&self.root_record, KEPT_BYTES);
        let same = last.is_ok_and(|last| last == *pem);
        (!same || !path.exists()).then_some((path, pem))
    }

    /// What placing these files would do, in its order.
    ///
    /// # Errors
    /// With a file that is there and cannot be read.
    pub fn changes(&self) -> Result<Vec<Change>, FileError> {
        let directories = [(&self.state_directory, STATE_MODE), (&self.run_directory, RUN_MODE)];
        let mut all = Vec::new();
        for (path, mode) in directories {
            let fate = match mode_of(path) {
                None => Fate::New,
                Some(is) if is == mode => Fate::Unchanged,
                Some(_) => Fate::Replaced,
            };
            all.push(Change { path: path.clone(), mode, what: What::Directory, fate });
        }
        for (path, content, mode) in self.wanted() {
            let fate = match kept(path)? {
                None => Fate::New,
                Some(before) if is_as_wanted(path, &before, content, mode) => Fate::Unchanged,
                Some(_) => Fate::Replaced,
            };
            let what = What::File { bytes: content.len() };
            all.push(Change { path: path.to_owned(), mode, what, fate });
        }
        Ok(all)
    }

    /// Whether every file is there as it would be placed.
    #[must_use]
    pub fn are_in_place(&self) -> bool {
        let differs = |change: &Change| {
            change.fate != Fate::Unchanged && matches!(change.what, What::File { .. })
        };
        self.changes().is_ok_and(|changes| !changes.iter().any(differs))
    }

    /// Files with their contents and modes, in the order in which they are placed. The configuration
    /// comes last: with it the machine counts as joined.
    fn wanted(&self) -> Vec<(&Path, &[u8], u32)> {
        let mut all: Vec<(&Path, &[u8], u32)> = Vec::new();
        if let Some((path, pem)) = self.new_root_cert() {
            all.push((path, pem.as_bytes(), fsio::PUBLIC));
        }
        if let Some((_, pem)) = &self.root_cert {
            all.push((&self.root_record, pem.as_bytes(), fsio::PUBLIC));
        }
        if let Some((path, pem)) = &self.kube_ca {
            all.push((path, pem.as_bytes(), fsio::PUBLIC));
        }
        for (path, token) in self.new_token().into_iter().chain(self.new_kube_token()) {
            all.push((path, token.expose_secret().as_bytes(), fsio::SECRET));
        }
        // Values of headers and arguments of commands in it may be secrets.
        all.push((&self.config.0, self.config.1.as_bytes(), fsio::SECRET));
        all
    }
}

/// What placing would do to one file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub path: PathBuf,
    /// The mode that it gets.
    pub mode: u32,
    /// What it is.
    pub what: What,
    /// What becomes of it.
    pub fate: Fate,
}

/// A file or a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory,
    /// A file of this length.
    File {
        /// Its length.
        bytes: usize,
    },
}

/// What becomes of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is made.
    New,
    /// It gets another content or mode.
    Replaced,
    /// It is as it should be.
    Unchanged,
}

fn unless_newer((path, token): &(PathBuf, SecretString)) -> Option<(&Path, &SecretString)> {
    (!is_newer(path, token)).then_some((path, token))
}

/// What was placed, so that it can be undone.
#[derive(Debug, Default)]
pub struct Layout {
    /// Directories that did not exist, outermost first.
    made: Vec<PathBuf>,
    /// Those of them that hold nothing but what the agent made.
    ours: Vec<PathBuf>,
    /// Files with what they held before; `None` for those that did not exist.
    replaced: Vec<Replaced>,
    /// Directories that existed, with the mode that they had.
    opened: Vec<(PathBuf, u32)>,
    /// Directories of the agent's that existed on a machine that had not joined, with what was in
    /// them.
    listed: Vec<(PathBuf, BTreeSet<OsString>)>,
    /// Whether anything is different from before.
    changed: bool,
}

/// A file that was placed, with what it held before.
#[derive(Debug)]
struct Replaced {
    path: PathBuf,
    before: Option<zeroize::Zeroizing<Vec<u8>>>,
    mode: u32,
}

impl Layout {
    /// Places the files. When one cannot be placed, those before it are undone.
    ///
    /// # Errors
    /// With the file.
    pub fn apply(files: &Files) -> Result<Self, FileError> {
        let mut layout = Self::default();
        match layout.place(files) {
            Ok(()) => Ok(layout),
            Err(error) => {
                layout.undo();
                Err(error)
            }
        }
    }

    /// Whether the host is different from before.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// Puts everything back as it was.
    pub fn undo(self) {
        for Replaced { path, before, mode } in self.replaced.into_iter().rev() {
            let undone = match before {
                Some(content) => fsio::replace(&path, &content, mode),
                None => fsio::remove(&path),
            };
            if let Err(error) = undone {
                tracing::warn!(%error, "A file of the failed join is still there.");
            }
        }
        for (directory, before) in self.listed {
            remove_others(&directory, &before);
        }
        for (directory, mode) in self.opened {
            drop(fsio::make_directory(&directory, mode));
        }
        for directory in self.made.into_iter().rev() {
            // In a directory that others share, what they put there meanwhile stays.
            if self.ours.contains(&directory) {
                drop(fsio::remove_tree(&directory));
            } else {
                fsio::remove_empty_directory(&directory);
            }
        }
    }

    fn place(&mut self, files: &Files) -> Result<(), FileError> {
        self.ours = vec![files.state_directory.clone(), files.run_directory.clone()];
        if !files.config.0.exists() {
            let here = self.ours.iter().filter_map(|path| Some((path.clone(), names(path)?)));
            self.listed = here.collect();
        } else if let Some(before) = kept(&files.identity)? {
            let (path, before) = (files.identity.clone(), Some(before));
            self.replaced.push(Replaced { path, before, mode: fsio::SECRET });
        }
        self.directory(&files.state_directory, STATE_MODE)?;
        self.directory(&files.run_directory, RUN_MODE)?;
        for (path, content, mode) in files.wanted() {
            self.file(path, content, mode)?;
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, mode: u32) -> Result<(), FileError> {
        let missing = path.ancestors().take_while(|directory| !directory.exists());
        let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        missing.reverse();
        self.made.extend(missing);
        if let Some(before) = mode_of(path).filter(|before| *before != mode) {
            self.opened.push((path.to_owned(), before));
        }
        fsio::make_directory(path, mode)
    }

    fn file(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
        if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
            self.directory(directory, 0o755)?;
        }
        let before = kept(path)?;
        let open = mode_of(path).unwrap_or(mode);
        if before.as_ref().is_some_and(|before| is_as_wanted(path, before, content, mode)) {
            return Ok(());
        }
        self.replaced.push(Replaced { path: path.to_owned(), before, mode: open });
        self.changed = true;
        fsio::replace(path, content, mode)
    }
}

/// What a file holds now.
fn kept(path: &Path) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, FileError> {
    match fsio::read(path, KEPT_BYTES) {
        Ok(content) => Ok(Some(zeroize::Zeroizing::new(content))),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// A token that others may read is not what was asked for, whatever it holds.
fn is_as_wanted(path: &Path, before: &[u8], content: &[u8], mode: u32) -> bool {
    before == content && mode_of(path).unwrap_or(mode) & !mode == 0
}

/// What is in a directory; `None` where there is none.
fn names(directory: &Path) -> Option<BTreeSet<OsString>> {
    let entries = std::fs::read_dir(directory).ok()?;
    Some(entries.flatten().map(|entry| entry.file_name()).collect())
}

/// Removes what was not in a directory before.
fn remove_others(directory: &Path, before: &BTreeSet<OsString>) {
    let now = names(directory).unwrap_or_default();
    for name in now.difference(before) {
        let path = directory.join(name);
        let removed = if path.is_dir() { fsio::remove_tree(&path) } else { fsio::remove(&path) };
        if let Err(error) = removed {
            tracing::warn!(%error, "A file of the failed join is still there.");
        }
    }
}

/// Whether a file holds a token that was made for the same account after this one. One that ends
/// sooner was not made from it, and is no better.
fn is_newer(path: &Path, token: &SecretString) -> bool {
    let Ok(held) = fsio::read_text(path, TOKEN_BYTES).map(zeroize::Zeroizing::new) else {
        return false;
    };
    match (Claims::read(&held), Claims::read(token.expose_secret())) {
        (Ok(held), Ok(new)) => {
            (&held.account, &held.audiences) == (&new.account, &new.audiences)
                && held.issued_at > new.issued_at
                && lives_as_long(&held, &new)
        }
        _ => false,
    }
}

/// Whether one token does not end before another; one without an end never does.
fn lives_as_long(one: &Claims, other: &Claims) -> bool {
    one.expires_at.is_none_or(|end| other.expires_at.is_some_and(|other| other <= end))
}

fn mode_of(path: &Path) -> Option<u32> {
    path.metadata().ok().map(|metadata| metadata.permissions().mode() & 0o7777)
}

/// Tokens and keys are for the agent alone.
const STATE_MODE: u32 = 0o700;
/// The proxy's user enters it as its working directory.
const RUN_MODE: u32 = 0o755;
/// Tokens are one or two kilobytes.
const TOKEN_BYTES: u64 = 64 << 10;
/// What was there before is small: our own files.
const KEPT_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn files(root: &Path, token: &str) -> Files {
        Files {
            config: (root.join("etc/vm-agent/config.yaml"), "a: 1\n".to_owned()),
            root_cert: Some((root.join("etc/vm-agent/root-cert.pem"), "pem".to_owned())),
            root_record: root.join("var/lib/vm-agent/joined-root-cert.pem"),
            kube_ca: Some((root.join("etc/vm-agent/kube-ca.pem"), "pem".to_owned())),
            token: Some((root.join("var/lib/vm-agent/istio-token"), SecretString::from(token))),
            kube_token: None,
            state_directory: root.join("var/lib/vm-agent"),
            run_directory: root.join("run/vm-agent"),
            identity: root.join("var/lib/vm-agent/identity.json"),
        }
    }

    #[test]
    fn what_was_placed_is_undone_without_a_trace() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::apply(&files(root.path(), "one")).unwrap();
        let token = root.path().join("var/lib/vm-agent/istio-token");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&token), mode(token.parent().unwrap())), (0o600, 0o700));
        assert!(layout.changed());
        assert!(!Layout::apply(&files(root.path(), "one")).unwrap().changed(), "the same again");
        Layout::apply(&files(root.path(), "two")).unwrap().undo();
        std::fs::write(root.path().join("var/lib/vm-agent/identity.json"), "").unwrap();
        assert_eq!(std::fs::read_to_string(&token).unwrap(), "one");
        layout.undo();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_the_agent_made_in_a_directory_that_was_there_is_undone_too() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("var/lib/vm-agent");
        std::fs::create_dir_all(&state).unwrap();
        std::fs::write(state.join("kept"), "").unwrap();
        let layout = Layout::apply(&files(root.path(), "one")).unwrap();
        std::fs::write(state.join("identity.json"), "").unwrap();
        std::fs::create_dir(state.join("export")).unwrap();
        layout.undo();
        assert_eq!(names(&state).unwrap(), BTreeSet::from(["kept".into()]));
        assert_eq!(names(root.path()).unwrap(), BTreeSet::from(["var".into()]));
    }

    #[test]
    fn undoing_a_second_join_brings_the_identity_of_the_first_one_back() {
        let root = tempfile::tempdir().unwrap();
        drop(Layout::apply(&files(root.path(), "one")).unwrap());
        let identity = root.path().join("var/lib/vm-agent/identity.json");
        std::fs::write(&identity, "first").unwrap();
        let layout = Layout::apply(&files(root.path(), "two")).unwrap();
        std::fs::write(&identity, "second").unwrap();
        layout.undo();
        assert_eq!(std::fs::read_to_string(&identity).unwrap(), "first");
        assert_eq!(mode_of(&identity), Some(0o600));
    }

    #[test]
    fn what_would_change_is_told_before_it_does() {
        let root = tempfile::tempdir().unwrap();
        let first = files(root.path(), "one");
        let fates = |files: &Files| -> Vec<Fate> {
            files.changes().unwrap().iter().map(|change| change.fate).collect()
        };
        assert_eq!(fates(&first), [Fate::New; 7]);
        assert!(!first.are_in_place());
        drop(Layout::apply(&first).unwrap());
        assert!(first.are_in_place());
        assert!(fates(&first).iter().all(|fate| *fate == Fate::Unchanged));
        let second = files(root.path(), "two");
        assert!(!second.are_in_place());
        let changes = second.changes().unwrap();
        let differs: Vec<_> =
            changes.iter().filter(|change| change.fate != Fate::Unchanged).collect();
        assert_eq!(differs.len(), 1);
        let token = differs[0];
        assert_eq!((token.fate, token.mode), (Fate::Replaced, 0o600));
        assert_eq!(token.what, What::File { bytes: 3 });
    }

    #[test]
    fn the_same_source_does_not_take_back_roots_that_the_mesh_told_since() {
        let root = tempfile::tempdir().unwrap();
        drop(Layout::apply(&files(root.path(), "one")).unwrap());
        let place = root.path().join("etc/vm-agent/root-cert.pem");
        std::fs::write(&place, "newer").unwrap();
        assert!(files(root.path(), "one").are_in_place());
        assert!(!Layout::apply(&files(root.path(), "one")).unwrap().changed());
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "newer");
        let mut other = files(root.path(), "one");
        other.root_cert = Some((place.clone(), "other".to_owned()));
        assert!(Layout::apply(&other).unwrap().changed(), "another source's count");
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "other");
    }

    #[test]
    fn a_step_that_fails_leaves_the_host_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("etc"), "in the way").unwrap();
        Layout::apply(&files(root.path(), "one")).unwrap_err();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn modes_are_put_right_and_back_again() {
        let root = tempfile::tempdir().unwrap();
        drop(Layout::apply(&files(root.path(), "one")).unwrap());
        let token = root.path().join("var/lib/vm-agent/istio-token");
        let state = root.path().join("var/lib/vm-agent");
        let modes = || (mode_of(&token).unwrap(), mode_of(&state).unwrap());
        std::fs::set_permissions(&token, Permissions::from_mode(0o644)).unwrap();
        std::fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
        let layout = Layout::apply(&files(root.path(), "one")).unwrap();
        assert_eq!((layout.changed(), modes()), (true, (0o600, 0o700)));
        layout.undo();
        assert_eq!(modes(), (0o644, 0o755));
        assert_eq!(std::fs::read_to_string(&token).unwrap(), "one");
    }

    #[test]
    fn joining_again_with_an_old_source_does_not_take_back_a_renewed_token() {
        use base64::Engine;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("var/lib/vm-agent/kube-token");
        let live = |account: &str, issued_at: u64, life: u64| {
            let end = issued_at + life;
            let claims = format!(
                "{{\"iat\":{issued_at},\"exp\":{end},\"sub\":\"system:serviceaccount:{account}\"}}"
            );
            let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims);
            let token = SecretString::from(format!("e30.{claims}.c2ln"));
            let other = root.path().join("var/lib/vm-agent/istio-token");
            let files = Files {
                kube_token: Some((path.clone(), token.clone())),
                token: Some((other.clone(), token)),
                ..files(root.path(), "one")
            };
            let layout = Layout::apply(&files).unwrap();
            let read = |path| std::fs::read_to_string(path).unwrap();
            assert_eq!(read(&other), read(&path), "what holds for one holds for the other");
            (layout.changed(), std::fs::read_to_string(&path).unwrap())
        };
        let join = |account: &str, issued_at: u64| live(account, issued_at, 1000);
        let (_, renewed) = join("vms:client", 2000);
        assert_eq!(mode_of(&path), Some(0o600));
        assert_eq!(join("vms:client", 1000), (false, renewed.clone()), "the same bundle again");
        let (changed, fresh) = join("vms:client", 3000);
        assert!(changed && fresh != renewed, "a new bundle");
        let (changed, long) = live("vms:client", 1000, 9000);
        assert!(changed && long != fresh, "an older bundle that lives longer");
        assert_eq!(join("vms:client", 500), (false, long));
        assert!(join("vms:other", 1000).0, "another account's is no older one");
        for name in ["kube-token", "istio-token"] {
            std::fs::write(path.with_file_name(name), "rubbish").unwrap();
        }
        assert!(join("vms:client", 1).0);
    }
}
