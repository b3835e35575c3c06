//! One Envoy process: its arguments, its output, its end.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncRead;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Config;
use super::logs::{LastLines, forward};
use crate::base::tasks::Tasks;

/// A running Envoy.
pub(super) struct Process {
    child: Child,
    /// Its number.
    pub(super) pid: u32,
    last_lines: LastLines,
    /// Each ends when an output has been read to its end.
    outputs: Vec<oneshot::Receiver<()>>,
}

impl Process {
    /// Starts Envoy through the launcher.
    #[expect(clippy::disallowed_methods, reason = "one of the two places that start Envoy")]
    pub(super) fn start(config: &Config, tasks: &Tasks) -> io::Result<Self> {
        let mut command = Command::new(&config.launcher);
        command.arg("launch-proxy").arg("--binary").arg(&config.binary);
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
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is for us: the proxy has to drain first.
            .process_group(0);
        let mut child = command.spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
        let last_lines = LastLines::default();
        let mut outputs = Vec::new();
        if let Some(output) = child.stdout.take() {
            outputs.push(read(tasks, "envoy-stdout", output, last_lines.clone()));
        }
        if let Some(output) = child.stderr.take() {
            outputs.push(read(tasks, "envoy-stderr", output, last_lines.clone()));
        }
        Ok(Self { child, pid, last_lines, outputs })
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// What it said last, once all that it said has been read.
    pub(super) async fn last_words(self) -> String {
        let all = futures_util::future::join_all(self.outputs);
        // A child of its own may keep the pipe open.
        drop(timeout(READ_LIMIT, all).await);
        self.last_lines.text()
    }

    /// Ends it: first politely, after `limit` not.
    pub(super) async fn end(mut self, limit: Duration) {
        if let Ok(pid) = i32::try_from(self.pid) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        if timeout(limit, self.child.wait()).await.is_err() {
            tracing::warn!(pid = self.pid, "The proxy did not end in time; killing it.");
            drop(self.child.kill().await);
        }
    }
}

fn read(
    tasks: &Tasks,
    name: &'static str,
    output: impl AsyncRead + Unpin + Send + 'static,
    lines: LastLines,
) -> oneshot::Receiver<()> {
    let (done, ended) = oneshot::channel::<()>();
    tasks.spawn(name, async move {
        forward(output, lines).await;
        drop(done);
    });
    ended
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

/// Envoy's arguments, as Istio's agent gives them (`pkg/envoy/proxy.go`).
fn arguments(config: &Config) -> Vec<String> {
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
/// What was said before the end is in the pipe already.
const READ_LIMIT: Duration = Duration::from_millis(500);
