//! Where a Workload API listens (SPIFFE Workload Endpoint, 4).

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What is wrong with a socket's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no socket: expected a path, as in unix:///run/spire/sockets/agent.sock")]
pub struct SocketError {
    /// The text.
    pub found: String,
}

/// A Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket(PathBuf);

impl Socket {
    /// Its path, which is absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Socket {
    type Err = SocketError;

    /// `unix:///PATH`, `unix:/PATH` or `/PATH`.
    fn from_str(text: &str) -> Result<Self, SocketError> {
        let path = match text.strip_prefix("unix:") {
            Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
            None => text,
        };
        if path.starts_with('/') && !path.ends_with('/') && !path.contains(['?', '#', '\0']) {
            Ok(Self(PathBuf::from(path)))
        } else {
            Err(SocketError { found: text.chars().take(300).collect() })
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_named_by_paths_with_or_without_a_scheme() {
        for text in ["unix:///run/a.sock", "unix:/run/a.sock", "/run/a.sock"] {
            assert_eq!(text.parse::<Socket>().unwrap().path(), Path::new("/run/a.sock"));
        }
        for text in
            ["", "tcp://127.0.0.1:8081", "unix://run/a.sock", "run/a.sock", "unix:///", "/a?b"]
        {
            assert!(text.parse::<Socket>().is_err(), "{text}");
        }
    }
}
