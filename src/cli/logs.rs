//! The log: text or JSON on standard error. It is set up once per process.

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::{MakeWriter, fmt};

use super::options::{Global, LogFormat};
use crate::base::log;

/// What the configuration says about the log; the command line wins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// `log.level`.
    pub(super) level: &'a str,
    /// `log.format` is `json`.
    pub(super) json: bool,
}

/// Sets up the log of a command, which is written at once. A second call does nothing.
pub(super) fn start(global: &Global, wanted: Wanted<'_>) {
    start_with(global, wanted, std::io::stderr);
}

/// Sets up the log of the daemon, which waits for nobody who reads it. What has not been written is written when the
/// result is dropped.
pub(super) fn start_daemon(global: &Global, wanted: Wanted<'_>) -> WorkerGuard {
    let (writer, guard) = log::writer();
    start_with(global, wanted, writer);
    guard
}

fn start_with(
    global: &Global,
    wanted: Wanted<'_>,
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
) {
    let level = match global.verbose {
        0 => wanted.level,
        1 => "debug",
        _ => "trace",
    };
    // The transport crates' own chatter helps only at trace.
    let filter = if global.verbose > 1 {
        EnvFilter::new("trace")
    } else {
        EnvFilter::new(format!("warn,vm_agent={level},envoy={level}"))
    };
    let json = global.log_format.map_or(wanted.json, |format| format == LogFormat::Json);
    let base = fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    let set = if json {
        base.json().flatten_event(true).try_init()
    } else {
        base.with_target(false).try_init()
    };
    drop(set);
}
