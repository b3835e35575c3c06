//! One Envoy process: its arguments, its end. It is our child, or an earlier agent's that we go on
//! with.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::launch::LaunchArgs;
use super::launcher::{self, Report};
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
    /// The service manager started it for us. The launcher tells how it ended.
    Launched(AsyncFd<OwnedFd>, Report),
    /// An earlier agent started it. The descriptor can be read from when it has ended.
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    /// Starts Envoy, by way of the service manager where that is set up.
    pub(super) async fn start(
        config: &Config,
        fingerprint: &str,
        output: OwnedFd,
    ) -> io::Result<Self> {
        let order = LaunchArgs {
            binary: config.binary.clone(),
            user: config.user,
            transparent: config.transparent,
            directory: config.directory.clone(),
            fingerprint: fingerprint.to_owned(),
            trial: false,
            args: arguments(config, BOOTSTRAP),
        };
        let Some(socket) = &config.launch_socket else {
            let command = launcher::command(&config.launcher, &order, output)?;
            let child = Command::from(command).spawn()?;
            let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
            return Ok(Self { hold: Hold::Child(child), pid });
        };
        let (pid, report) = launcher::order(socket, &order, output).await?;
        let handle = hold(pid)?.ok_or_else(|| io::Error::other("it ended at once"))?;
        Ok(Self { hold: Hold::Launched(handle, report), pid })
    }

    /// Goes on with a process that an earlier agent started; `None` when it has just ended.
    pub(super) fn adopt(noted: &Noted) -> io::Result<Option<Self>> {
        let Some(handle) = hold(noted.pid)? else { return Ok(None) };
        // The number may have got to another process before we held it.
        if !noted.lives() {
            return Ok(None);
        }
        Ok(Some(Self { hold: Hold::Adopted(handle), pid: noted.pid }))
    }

    /// Who started it.
    pub(super) fn origin(&self) -> ProxyOrigin {
        match &self.hold {
            Hold::Child(_) | Hold::Launched(..) => ProxyOrigin::Started,
            Hold::Adopted(_) => ProxyOrigin::Adopted,
        }
    }

    /// Waits for its end, and tells in words how that was.
    pub(super) async fn ended(&mut self) -> String {
        match &mut self.hold {
            Hold::Child(child) => describe(&child.wait().await),
            Hold::Launched(handle, report) => match report.next_line().await {
                Ok(Some(how)) => how,
                // The launcher is gone; its child may live on.
                _ => strange_end(handle).await,
            },
            Hold::Adopted(handle) => strange_end(handle).await,
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
            Hold::Launched(handle, _) | Hold::Adopted(handle) => {
                let signal = match signal {
                    Signal::SIGKILL => rustix::process::Signal::KILL,
                    _ => rustix::process::Signal::TERM,
                };
                pidfd_send_signal(handle.get_ref(), signal).ok();
            }
        }
    }
}

/// Runs the configured binary with these arguments for a trial, in the same way as Envoy is started;
/// how it ended, or `None` when it had to be killed after `limit`.
pub(super) async fn run_to_end(
    config: &Config,
    args: Vec<String>,
    output: OwnedFd,
    limit: Duration,
) -> io::Result<Option<String>> {
    let order = LaunchArgs {
        binary: config.binary.clone(),
        user: config.user,
        transparent: false,
        directory: config.directory.clone(),
        fingerprint: String::new(),
        trial: true,
        args,
    };
    let Some(socket) = &config.launch_socket else {
        let command = launcher::command(&config.launcher, &order, output)?;
        let mut child = Command::from(command).kill_on_drop(true).spawn()?;
        return Ok(timeout(limit, child.wait()).await.ok().map(|ended| describe(&ended)));
    };
    let (pid, mut report) = launcher::order(socket, &order, output).await?;
    if let Ok(line) = timeout(limit, report.next_line()).await {
        return Ok(Some(line?.unwrap_or_else(|| "the launcher ended".to_owned())));
    }
    // The launcher has not waited for it yet: the number is still its own.
    if let Some(handle) = hold(pid)? {
        pidfd_send_signal(handle.get_ref(), rustix::process::Signal::KILL).ok();
    }
    Ok(None)
}

/// A descriptor that names the process of this number and no other (`pidfd_open(2)`); `None` when
/// there is none.
fn hold(pid: u32) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let raw = raw.ok_or_else(|| io::Error::other("its number is none"))?;
    let handle = match pidfd_open(raw, PidfdFlags::NONBLOCK) {
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        handle => handle?,
    };
    #[expect(
        deprecated,
        reason = "what took its place is unsafe for descriptors that may change; an OwnedFd does not"
    )]
    AsyncFd::with_interest(handle, Interest::READABLE).map(Some)
}

async fn strange_end(handle: &AsyncFd<OwnedFd>) -> String {
    match handle.readable().await {
        Ok(_) => STRANGE_END.to_owned(),
        Err(error) => error.to_string(),
    }
}

/// How a process ended, in words.
pub(super) fn describe(ended: &io::Result<ExitStatus>) -> String {
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

/// Envoy's arguments with this bootstrap, as Istio's agent gives them (`pkg/envoy/proxy.go`).
pub(super) fn arguments(config: &Config, bootstrap: &str) -> Vec<String> {
    let mut level = config.log_level.split(',');
    let mut args: Vec<String> = [
        "-c",
        bootstrap,
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
/// What [`describe`] says of a process that ended well.
pub(super) const SUCCESS: &str = "exit status 0";
/// The kernel tells only a parent how a process ended.
const STRANGE_END: &str = "it ended; how is not known, as an earlier agent had started it";
