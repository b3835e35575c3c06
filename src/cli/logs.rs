//! The log: text or JSON on standard error. It is set up once per process.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use super::options::{Global, LogFormat};

/// What the configuration says about the log; the command line wins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// `log.level`.
    pub(super) level: &'a str,
    /// `log.format` is `json`.
    pub(super) json: bool,
}

/// Sets up the log. A second call does nothing.
pub(super) fn start(global: &Global, wanted: Wanted<'_>) {
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
    let base = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let set = if json {
        base.json().flatten_event(true).try_init()
    } else {
        base.with_target(false).try_init()
    };
    drop(set);
}
