//! The log: text or JSON on standard error. It is set up once per process.

use std::fmt::Result as Written;

use serde_json::Value;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, fmt};
use tracing_subscriber::registry::LookupSpan;

use super::options::{Global, LogFormat};
use crate::base::{log, printable};

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
        base.json().flatten_event(true).map_event_format(OneLine).try_init()
    } else {
        base.with_target(false).map_event_format(OneLine).try_init()
    };
    drop(set);
}

/// An event as exactly one printable line of limited length, whatever its fields hold: the words of a
/// peer can neither forge another event nor control a terminal.
struct OneLine<F>(F);

impl<S, N, F> FormatEvent<S, N> for OneLine<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> Written {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        writeln!(writer, "{}", one_line(text.trim_end_matches('\n')))
    }
}

fn one_line(text: &str) -> String {
    // A JSON document that is cut is none: its texts are cut instead.
    if text.len() > EVENT_BYTES
        && let Ok(mut tree) = serde_json::from_str::<Value>(text)
    {
        printable::sanitize(&mut tree);
        return tree.to_string();
    }
    printable::line(&printable::cut(text, EVENT_BYTES)).into_owned()
}

/// The longest event: journald splits longer lines at 48 KiB (journald.conf(5), LineMax=).
const EVENT_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What events that hold this text look like in both formats.
    fn logged(said: &str) -> [String; 2] {
        [false, true].map(|json| {
            let written = Written::default();
            let to = written.clone();
            let base = fmt().with_writer(move || to.clone()).with_ansi(false);
            let emit = || {
                let _span = tracing::info_span!("span", said).entered();
                tracing::info!(said, %said, "Refused: {said}");
            };
            if json {
                let set = base.json().flatten_event(true).map_event_format(OneLine).finish();
                tracing::subscriber::with_default(set, emit);
            } else {
                let set = base.with_target(false).map_event_format(OneLine).finish();
                tracing::subscriber::with_default(set, emit);
            }
            let bytes = written.0.lock().unwrap().clone();
            String::from_utf8(bytes).unwrap()
        })
    }

    #[test]
    fn an_event_is_one_printable_line_whatever_a_peer_says() {
        let hostile = "no\u{1b}[31m\r\n2026-11-30T00:00:00Z  INFO forged\u{202e}\u{2028}\u{9b}2J";
        for text in logged(hostile) {
            let line = text.strip_suffix('\n').unwrap();
            assert!(line.chars().all(printable::is_printable), "{line:?}");
            assert!(line.contains("Refused: no"), "{line}");
        }
        let [_, json] = logged(hostile);
        let event: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(event["message"], format!("Refused: {hostile}"), "JSON keeps the text");
    }

    #[test]
    fn an_event_has_a_limited_length() {
        let [text, json] = logged(&"\u{1b}".repeat(1 << 20));
        for line in [&text, &json] {
            assert!(line.len() < 10 * EVENT_BYTES && line.contains("more bytes"), "{}", line.len());
        }
        assert!(serde_json::from_str::<Value>(&json).is_ok());
    }
}
