//! What is wrong, in words for people: the cause with its chain, and what to do about it.

use std::error::Error;
use std::fmt;
use std::time::SystemTime;

use serde::Serialize;

use super::backoff::Retry;
use super::problem::Problems;
use super::{clock, printable};

/// A condition that somebody may have to know about. It never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// What failed and why, the whole chain of causes in one line.
    #[serde(serialize_with = "as_message")]
    pub what: String,
    /// What to do about it, as a sentence or a command.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_hint")]
    pub hint: Option<String>,
    /// Whether it can pass by itself.
    pub retry: Retry,
    /// Since when, RFC 3339.
    #[serde(serialize_with = "as_rfc3339")]
    pub since: SystemTime,
}

impl Trouble {
    /// A trouble from an error and its causes.
    #[must_use]
    pub fn new(error: &dyn Error, hint: Option<String>, retry: Retry, since: SystemTime) -> Self {
        Self { what: chain(error), hint, retry, since }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable::message(&self.what))?;
        let hint = self.hint.as_deref().map(printable::message);
        if let Some(hint) = hint { write!(f, " (hint: {hint})") } else { Ok(()) }
    }
}

/// An error and its causes in one line, outermost first. A cause whose words its parent already
/// contains is left out. Each may hold words of a peer: they are escaped and cut
/// ([`printable::message`]).
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = printable::message(&error.to_string());
    let mut next = error.source();
    while let Some(cause) = next {
        append(&mut text, &printable::message(&cause.to_string()));
        next = cause.source();
    }
    text
}

/// As [`chain`], but each of several [`Problems`] keeps its line: for a terminal.
#[must_use]
pub fn chain_in_lines(error: &(dyn Error + 'static)) -> String {
    let mut next = Some(error);
    let mut text = String::new();
    while let Some(cause) = next {
        let words = match cause.downcast_ref::<Problems>() {
            // Each problem is safe by itself.
            Some(problems) => problems.to_string(),
            None => printable::message(&cause.to_string()),
        };
        append(&mut text, &words);
        next = cause.source();
    }
    text
}

fn append(text: &mut String, words: &str) {
    if text.is_empty() {
        text.push_str(words);
    } else if !text.contains(words) {
        text.push_str(": ");
        text.push_str(words);
    }
}

fn as_message<S: serde::Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&printable::message(text))
}

fn as_hint<S: serde::Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().map(printable::message).serialize(to)
}

fn as_rfc3339<S: serde::Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&clock::rfc3339(*at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::problem::Problem;

    #[derive(Debug, thiserror::Error)]
    #[error("istiod refused: {said}")]
    struct Refused {
        said: String,
        #[source]
        source: std::io::Error,
    }

    fn hostile() -> Refused {
        let said = "no\u{1b}[31m\n2026-11-30T00:00:00Z INFO forged".to_owned();
        Refused { said, source: std::io::Error::other("a\u{202e}b") }
    }

    #[test]
    fn the_words_of_a_peer_stay_one_line_without_control_characters() {
        let shown = "istiod refused: no\\u001b[31m\\n2026-11-30T00:00:00Z INFO forged: a\\u202eb";
        assert_eq!(chain(&hostile()), shown);
        assert_eq!(chain_in_lines(&hostile()), shown);
        let long = Refused { said: "x".repeat(1 << 20), ..hostile() };
        assert!(chain(&long).len() < 2 * printable::TEXT_BYTES);
    }

    #[test]
    fn a_condition_is_safe_however_it_was_made() {
        let (what, hint) = ("a\nb".to_owned(), Some("c\u{1b}d".to_owned()));
        let trouble = Trouble { what, hint, retry: Retry::Soon, since: SystemTime::UNIX_EPOCH };
        assert_eq!(trouble.to_string(), "a\\nb (hint: c\\u001bd)");
        let tree = serde_json::to_value(&trouble).unwrap();
        assert_eq!(
            (tree["what"].as_str(), tree["hint"].as_str()),
            (Some("a\\nb"), Some("c\\u001bd"))
        );
    }

    #[test]
    fn on_a_terminal_several_problems_have_a_line_each() {
        let problems = Problems(vec![Problem::new("f", "a", "x\ny"), Problem::new("f", "b", "z")]);
        assert_eq!(chain_in_lines(&problems), "f: a: x\\ny\nf: b: z");
        assert_eq!(chain(&problems), "f: a: x\\ny\\nf: b: z");
    }
}
