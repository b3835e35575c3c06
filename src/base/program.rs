//! Programs that settings name: no shell, a clean environment, and nothing of them is left running.

use std::process::Stdio;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getegid, getgid};
use tokio::process::{Child, Command};

/// A program that is yet to be started, in a process group of its own, with pipes for what it says.
#[must_use]
pub fn command(program: &str, arguments: &[String]) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the one place that runs what settings name")]
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    // Not the group that we took on, by which redirect rules know us. A service has no other.
    if getegid() != getgid() {
        command.gid(getgid().as_raw());
    }
    command
}

/// Raises the number of files that this process may have open to what it may be raised to. Every connection through the
/// mesh takes two; a low limit is no reason not to start.
pub fn raise_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok();
    }
}

/// Ends a process group when dropped: a child of the program must not outlive it.
#[derive(Debug)]
pub struct Group(Option<u32>);

impl Group {
    /// The group of a program that was started by [`command`].
    #[must_use]
    pub fn of(child: &Child) -> Self {
        Self(child.id())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            // It is usually gone already.
            killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// Where a program is looked for that has no path.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
