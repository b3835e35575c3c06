//! What is wrong, in words for people: the cause with its chain, and what to do about it.

use std::error::Error;
use std::fmt;
use std::time::SystemTime;

use serde::Serialize;

use super::backoff::Retry;
use super::clock;

/// A condition that somebody may have to know about. It never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// What failed and why, the whole chain of causes in one line.
    pub what: String,
    /// What to do about it, as a sentence or a command.
    #[serde(skip_serializing_if = "Option::is_none")]
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
        f.write_str(&self.what)?;
        if let Some(hint) = &self.hint { write!(f, " (hint: {hint})") } else { Ok(()) }
    }
}

/// An error and its causes in one line, outermost first. A cause whose words its parent already
/// contains is left out.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

fn as_rfc3339<S: serde::Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&clock::rfc3339(*at))
}
