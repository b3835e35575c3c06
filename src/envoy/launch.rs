//! Becoming Envoy: the body of the hidden subcommand. It gives up what Envoy must not have, and
//! then replaces itself.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::prctl;
use nix::unistd::{self, Gid, Uid};
use rustix::fs::{FileType, Mode, fchmod, fchown, fstat};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, set_capabilities,
};
use serde::{Deserialize, Serialize};

use super::ProxyUser;
use super::note::Note;
use crate::base::fsio;
use crate::base::program::raise_open_files;

/// What to become.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaunchArgs {
    /// The binary.
    pub binary: PathBuf,
    /// The user to become; `None` stays.
    pub user: Option<ProxyUser>,
    /// Whether it needs transparent sockets, which take the right to administer the network.
    pub transparent: bool,
    /// The working directory.
    pub directory: PathBuf,
    /// What it is started with, as one word, for the note about it.
    pub fingerprint: String,
    /// Whether it is only tried beside an Envoy that runs, and is not noted.
    #[serde(default)]
    pub trial: bool,
    /// Its arguments, without its name.
    pub args: Vec<String>,
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct LaunchError {
    /// What was tried.
    step: String,
    /// What the kernel said.
    #[source]
    source: io::Error,
}

/// Becomes Envoy. The binary is opened, and the directory entered, before the user changes: neither
/// needs to be reachable by path for Envoy's user.
///
/// # Errors
/// With the step that failed; on success it never returns.
pub fn launch(args: LaunchArgs) -> Result<Infallible, LaunchError> {
    let failed = |step: &str, source: io::Error| LaunchError { step: step.to_owned(), source };
    let open = format!("open {}", args.binary.display());
    let mut binary =
        fsio::open_regular(&args.binary).map_err(|error| failed(&open, error.source))?;
    let enter = format!("enter {}", args.directory.display());
    unistd::chdir(&args.directory).map_err(|error| failed(&enter, error.into()))?;
    raise_open_files();
    if !args.trial {
        // From here to the end this process has one number, by which the next agent knows it.
        Note::new(&args.directory).write(std::process::id(), &args.fingerprint).map_err(
            |error| LaunchError { step: "note the process".to_owned(), source: error.source },
        )?;
    }
    if let Some(user) = args.user {
        prctl::set_keepcaps(args.transparent)
            .map_err(|error| failed("keep a capability", error.into()))?;
        become_group(user.gid)?;
        share_output(user.gid).map_err(|error| failed("share the output", error.into()))?;
        become_user(user.uid)?;
        if args.transparent {
            keep_net_admin().map_err(|error| failed("keep CAP_NET_ADMIN", error.into()))?;
        }
    }
    execute(&mut binary, &args.binary, reachable(args.args))
}

/// Becomes Envoy as it tells its version: as its own user, who gives it nothing but that.
///
/// # Errors
/// With the step that failed; on success it never returns.
pub fn tell_version(path: &Path, user: ProxyUser) -> Result<Infallible, LaunchError> {
    let mut binary = fsio::open_regular(path).map_err(|error| LaunchError {
        step: format!("open {}", path.display()),
        source: error.source,
    })?;
    become_group(user.gid)?;
    become_user(user.uid)?;
    execute(&mut binary, path, vec!["--version".to_owned()])
}

fn become_group(gid: u32) -> Result<(), LaunchError> {
    unistd::setgroups(&[]).map_err(failed_to("drop the groups".to_owned()))?;
    unistd::setgid(Gid::from_raw(gid)).map_err(failed_to(format!("become group {gid}")))
}

fn become_user(uid: u32) -> Result<(), LaunchError> {
    unistd::setuid(Uid::from_raw(uid)).map_err(failed_to(format!("become user {uid}")))
}

fn failed_to(step: String) -> impl FnOnce(nix::Error) -> LaunchError {
    move |error| LaunchError { step, source: error.into() }
}

/// Replaces this process, for good without any further privileges.
fn execute(
    binary: &mut File,
    path: &Path,
    arguments: Vec<String>,
) -> Result<Infallible, LaunchError> {
    prctl::set_no_new_privs().map_err(failed_to("forbid new privileges".to_owned()))?;
    let name = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
    let mut argv = vec![name.clone()];
    argv.extend(arguments.into_iter().filter_map(|arg| CString::new(arg).ok()));
    let environment = [c"PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    // The kernel cannot start a script from a closed file: its interpreter opens it by its path.
    let started = if is_script(binary) {
        unistd::execve(&name, &argv, &environment)
    } else {
        unistd::fexecve(&*binary, &argv, &environment)
    };
    started.map_err(failed_to(format!("start {}", path.display())))
}

/// Envoy opens its output a second time, by path, for an access log at `/dev/stdout`. Its group, which
/// we have by now, may write to it.
fn share_output(gid: u32) -> Result<(), rustix::io::Errno> {
    let output = io::stdout();
    let is_pipe = FileType::from_raw_mode(fstat(&output)?.st_mode) == FileType::Fifo;
    if is_pipe {
        fchown(&output, None, Some(rustix::fs::Gid::from_raw(gid)))?;
        fchmod(&output, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
    }
    Ok(())
}

/// Gives up every capability but the one that transparent sockets need (`IP_TRANSPARENT`, ip(7)).
fn keep_net_admin() -> Result<(), rustix::io::Errno> {
    let one = CapabilitySet::NET_ADMIN;
    let sets = CapabilitySets { effective: one, permitted: one, inheritable: one };
    set_capabilities(None, sets)?;
    configure_capability_in_ambient_set(one, true)
}

/// Envoy resolves its bootstrap's whole path. Where a directory above ours is closed to its user it
/// gets the text itself (which holds no secret) instead of the file.
fn reachable(mut args: Vec<String>) -> Vec<String> {
    let Some(at) = args.iter().position(|arg| arg == "-c") else { return args };
    let end = at.saturating_add(2);
    let Some(file) = args.get(at..end).and_then(<[String]>::last).cloned() else { return args };
    if Path::new(&file).canonicalize().is_err()
        && let Ok(text) = fsio::read_text(Path::new(&file), BOOTSTRAP_BYTES)
    {
        args.splice(at..end, ["--config-yaml".to_owned(), text]);
    }
    args
}

fn is_script(binary: &mut File) -> bool {
    let mut start = [0; 2];
    let read = binary.read_exact(&mut start).and_then(|()| binary.rewind());
    read.is_ok() && &start == b"#!"
}

/// The kernel's limit for one argument.
const BOOTSTRAP_BYTES: u64 = 128 << 10;
