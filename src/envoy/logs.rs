//! Envoy's output: into our log, with its levels; the last lines are kept for whoever asks why it
//! died.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// The last lines of one process.
#[derive(Clone, Debug, Default)]
pub(super) struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    /// The lines, joined.
    pub(super) fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// Reads an output until its end.
pub(super) async fn forward(output: impl AsyncRead + Unpin + Send, lines: LastLines) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut reader, &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if !text.is_empty() {
            let (level, words) = split(text);
            log(level, words);
            lines.push(words.to_owned());
        }
    }
}

/// A line, of which at most [`LINE_BYTES`] are kept.
async fn read_line(
    reader: &mut (impl AsyncBufReadExt + Unpin),
    line: &mut Vec<u8>,
) -> std::io::Result<usize> {
    let mut total = 0_usize;
    loop {
        let found = reader.fill_buf().await?;
        if found.is_empty() {
            return Ok(total);
        }
        let end = found.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(found.len(), |end| end.saturating_add(1));
        let room = LINE_BYTES.saturating_sub(line.len()).min(taken);
        line.extend_from_slice(found.get(..room).unwrap_or_default());
        reader.consume(taken);
        total = total.saturating_add(taken);
        if end.is_some() {
            return Ok(total);
        }
    }
}

/// Our bootstrap's format: time, level, place, message and thread, with tabs between them.
fn split(line: &str) -> (&str, &str) {
    let mut parts = line.splitn(4, '\t');
    let (Some(_), Some(level), Some(_), Some(rest)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return ("warning", line);
    };
    (level, rest.rsplit_once("\tthread=").map_or(rest, |(words, _)| words))
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

const LINES: usize = 10;
const LINE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_and_broken_lines_are_bounded_and_the_last_ones_kept() {
        let mut text = format!(
            "2026\terror\tenvoy main x.cc:1\tcannot bind\tthread=7\n{}\n",
            "x".repeat(9000)
        );
        for number in 0..9 {
            text.push_str(&format!("line {number}\n"));
        }
        text.push_str("no end");
        let lines = LastLines::default();
        forward(text.as_bytes(), lines.clone()).await;
        let kept = lines.text();
        assert!(kept.starts_with("line 0 | ") && kept.ends_with("line 8 | no end"), "{kept}");
        assert_eq!(
            split("2026\terror\tenvoy main x.cc:1\tcannot bind\tthread=7"),
            ("error", "cannot bind")
        );
    }
}
