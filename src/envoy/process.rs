//! One Envoy process: its arguments, its end. It is our child, or an earlier agent's that we go on
//! with.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::note::Noted;
use super::{Config, ProxyOrigin};

/// A running Envoy.
pub(super) struct Process {
    hold: Hold,
    /// Its number.
    pub(super) pid: u32,
}

/// How we hold it.
enum Hold {
    /// We started it.
    Child(Child),
    /// An earlier agent started it. The descriptor names this process and no other, and can be read
    /// from when it has ended (`pidfd_open(2)`).
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    /// Starts Envoy through the launcher.
    #[expect(clippy::disallowed_methods, reason = "one of the two places that start Envoy")]
    pub(super) fn start(config: &Config, fingerprint: &str, output: OwnedFd) -> io::Result<Self> {
        let mut command = Command::new(&config.launcher);
        command.arg("launch-proxy").arg("--binary").arg(&config.binary);
        command.arg("--fingerprint").arg(fingerprint);
        command.arg("--directory").arg(&config.directory);
        if let Some(user) = config.user {
            command.args(["--uid", &user.uid.to_string(), "--gid", &user.gid.to_string()]);
        }
        if config.transparent {
            command.arg("--transparent");
        }
        command
            .arg("--")
            .args(arguments(config))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C in a terminal is for us: the proxy has to drain first.
            .process_group(0);
        let child = command.spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
        Ok(Self { hold: Hold::Child(child), pid })
    }

    /// Goes on with a process that an earlier agent started; `None` when it has just ended.
    pub(super) fn adopt(noted: &Noted) -> io::Result<Option<Self>> {
        let raw = i32::try_from(noted.pid).ok().and_then(rustix::process::Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::other("its number is none"))?;
        let handle = match pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            handle => handle?,
        };
        // The number may have got to another process before we held it.
        if !noted.lives() {
            return Ok(None);
        }
        #[expect(
            deprecated,
            reason = "what took its place is unsafe for descriptors that may change; an OwnedFd does not"
        )]
        let handle = AsyncFd::with_interest(handle, Interest::READABLE)?;
        Ok(Some(Self { hold: Hold::Adopted(handle), pid: noted.pid }))
    }

    /// Who started it.
    pub(super) fn origin(&self) -> ProxyOrigin {
        match &self.hold {
            Hold::Child(_) => ProxyOrigin::Started,
            Hold::Adopted(_) => ProxyOrigin::Adopted,
        }
    }

    /// Waits for its end, and tells in words how that was.
    pub(super) async fn ended(&mut self) -> String {
        match &mut self.hold {
            Hold::Child(child) => describe(&child.wait().await),
            Hold::Adopted(handle) => match handle.readable().await {
                Ok(_) => STRANGE_END.to_owned(),
                Err(error) => error.to_string(),
            },
        }
    }

    /// Ends it: first politely, after `limit` not.
    pub(super) async fn end(mut self, limit: Duration) {
        self.signal(Signal::SIGTERM);
        if timeout(limit, self.ended()).await.is_err() {
            tracing::warn!(pid = self.pid, "The proxy did not end in time; killing it.");
            self.signal(Signal::SIGKILL);
            // Only a process that hangs in the kernel outlives this.
            drop(timeout(limit, self.ended()).await);
        }
    }

    /// It may have ended by itself meanwhile.
    fn signal(&self, signal: Signal) {
        match &self.hold {
            // A child keeps its number until it has been waited for.
            Hold::Child(child) => {
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    kill(Pid::from_raw(pid), signal).ok();
                }
            }
            Hold::Adopted(handle) => {
                let signal = match signal {
                    Signal::SIGKILL => rustix::process::Signal::KILL,
                    _ => rustix::process::Signal::TERM,
                };
                pidfd_send_signal(handle.get_ref(), signal).ok();
            }
        }
    }
}

/// How a process ended, in words.
fn describe(ended: &io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match ended {
        Err(error) => error.to_string(),
        Ok(status) => match (status.code(), status.signal()) {
            (_, Some(9)) => "killed by signal 9 (if nobody did: out of memory?)".to_owned(),
            (_, Some(signal)) => format!("killed by signal {signal}"),
            (Some(code), _) => format!("exit status {code}"),
            _ => status.to_string(),
        },
    }
}

/// Envoy's arguments, as Istio's agent gives them (`pkg/envoy/proxy.go`).
pub(super) fn arguments(config: &Config) -> Vec<String> {
    let mut level = config.log_level.split(',');
    let mut args: Vec<String> = [
        "-c",
        BOOTSTRAP,
        "--drain-time-s",
        &config.drain_time.as_secs().to_string(),
        "--drain-strategy",
        "immediate",
        "--local-address-ip-version",
        if config.only_ipv6 { "v6" } else { "v4" },
        "--file-flush-interval-msec",
        "1000",
        "--disable-hot-restart",
        "--allow-unknown-static-fields",
        "-l",
        level.next().unwrap_or("warning"),
        "--skip-deprecated-logs",
    ]
    .map(str::to_owned)
    .to_vec();
    let components: Vec<&str> = level.collect();
    if !components.is_empty() {
        args.extend(["--component-log-level".to_owned(), components.join(",")]);
    }
    if let Some(workers) = config.concurrency {
        args.extend(["--concurrency".to_owned(), workers.to_string()]);
    }
    args.extend(config.extra_args.iter().cloned());
    args
}

/// The bootstrap's name in the working directory.
pub(super) const BOOTSTRAP: &str = "envoy.json";
/// The kernel tells only a parent how a process ended.
const STRANGE_END: &str = "it ended; how is not known, as an earlier agent had started it";
