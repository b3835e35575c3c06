//! Envoy's words: into our log, with its levels; the last lines are kept for whoever asks why it
//! died.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::excerpt::excerpt;

/// Lines as they come in, and the last ones of them.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The line that has no end yet.
    begun: Vec<u8>,
    last: VecDeque<String>,
    /// Lines of this turn.
    turn: usize,
    /// Lines that were not logged, and have not been reported.
    dropped: u64,
    reported: Option<Instant>,
}

impl Lines {
    /// Takes what was read. Of a line at most [`LINE_BYTES`] are kept.
    pub(super) fn take(&mut self, text: &[u8]) {
        for part in text.split_inclusive(|&byte| byte == b'\n') {
            let room = LINE_BYTES.saturating_sub(self.begun.len()).min(part.len());
            self.begun.extend_from_slice(part.get(..room).unwrap_or_default());
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    /// What comes now counts anew: of one turn at most [`TURN_LINES`] are logged.
    pub(super) fn begin_turn(&mut self) {
        self.turn = 0;
        if self.dropped > 0 && self.reported.is_none_or(|at| at.elapsed() >= REPORT_PAUSE) {
            let lines = std::mem::take(&mut self.dropped);
            tracing::warn!(target: "envoy", lines, "Dropped lines of the proxy's output: it writes too fast.");
            self.reported = Some(Instant::now());
        }
    }

    /// Whether no more lines of this turn are logged.
    pub(super) fn is_turn_over(&self) -> bool {
        self.turn >= TURN_LINES
    }

    /// The last lines, joined, those that were told before apart. A line without an end counts.
    pub(super) fn finish(&mut self) -> String {
        self.end_line();
        std::mem::take(&mut self.last).into_iter().collect::<Vec<_>>().join(" | ")
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.begun);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        let (level, words) = split(text);
        // Envoy quotes configuration that it rejects, which may hold secrets.
        let is_access = is_access_log(text);
        let words = if is_access { words.to_owned() } else { excerpt(words, LINE_BYTES) };
        if self.is_turn_over() {
            self.dropped = self.dropped.saturating_add(1);
        } else {
            self.turn = self.turn.saturating_add(1);
            log(level, &words);
        }
        if self.last.len() == LINES {
            self.last.pop_front();
        }
        self.last.push_back(words);
    }
}

/// Our bootstrap's format: time, level, place, message and thread, with tabs between them. What has
/// another one is an access log, as Istio formats it, or the word of something that breaks.
fn split(line: &str) -> (&str, &str) {
    let mut parts = line.splitn(4, '\t');
    let (Some(_), Some(level), Some(_), Some(rest)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return (if is_access_log(line) { "info" } else { "warning" }, line);
    };
    (level, rest.rsplit_once("\tthread=").map_or(rest, |(words, _)| words))
}

/// Whether a line is an access log in one of the two forms that Istio's default settings give it.
fn is_access_log(line: &str) -> bool {
    line.starts_with('{') && line.ends_with('}') || line.starts_with('[') && line.contains("] \"")
}

fn log(level: &str, words: &str) {
    match level {
        "trace" => tracing::trace!(target: "envoy", "{words}"),
        "debug" => tracing::debug!(target: "envoy", "{words}"),
        "info" => tracing::info!(target: "envoy", "{words}"),
        "error" | "critical" => tracing::error!(target: "envoy", "{words}"),
        _ => tracing::warn!(target: "envoy", "{words}"),
    }
}

/// A busy Envoy logs some thousand requests a second; a turn takes some ten milliseconds.
const TURN_LINES: usize = 500;
const REPORT_PAUSE: Duration = Duration::from_secs(1);
const LINES: usize = 10;
const LINE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_broken_lines_are_bounded_and_the_last_ones_kept() {
        let mut text = format!(
            "2026\terror\tenvoy main x.cc:1\tcannot bind\tthread=7\n{}\n",
            "x".repeat(9000)
        );
        for number in 0..9 {
            text.push_str(&format!("line {number}\n"));
        }
        text.push_str("no end");
        // However it is cut.
        for size in [1, 7, 100_000] {
            let mut lines = Lines::default();
            text.as_bytes().chunks(size).for_each(|part| lines.take(part));
            let kept = lines.finish();
            assert!(kept.starts_with("line 0 | ") && kept.ends_with("line 8 | no end"), "{kept}");
            assert_eq!(lines.finish(), "", "those of one process are not those of the next");
        }
        assert_eq!(
            split("2026\terror\tenvoy main x.cc:1\tcannot bind\tthread=7"),
            ("error", "cannot bind")
        );
    }

    #[test]
    fn secrets_in_a_rejected_configuration_are_masked() {
        let mut lines = Lines::default();
        lines.take(b"2026\twarning\tenvoy config x.cc:1\tgRPC config for X rejected: bad: key: \"K\" value: \"hunter2\"\tthread=7\n  value: \"hunter2\"\n");
        let kept = lines.finish();
        assert!(kept.contains("gRPC config for X rejected") && !kept.contains("hunter2"), "{kept}");
    }

    #[test]
    fn of_lines_that_come_too_fast_so_many_are_logged_and_the_others_counted() {
        let mut lines = Lines::default();
        lines.begin_turn();
        lines.take("y\n".repeat(TURN_LINES).as_bytes());
        assert!(lines.is_turn_over() && lines.dropped == 0);
        lines.take(b"y\ny\ny");
        assert_eq!(lines.dropped, 2);
        lines.begin_turn();
        assert!(!lines.is_turn_over() && lines.dropped == 0);
    }

    #[test]
    fn an_access_log_is_no_warning() {
        for (line, level) in [
            ("[2026-11-26T16:25:34.484Z] \"GET / HTTP/1.1\" 200 -", "info"),
            ("{\"method\":\"GET\"}", "info"),
            ("[2026-11-26 16:06:42.402][25871][critical][main] [x.cc:1] cannot bind", "warning"),
            ("terminate called", "warning"),
        ] {
            assert_eq!(split(line), (level, line));
        }
    }
}
