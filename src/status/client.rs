//! Asks the daemon over its admin socket. Blocking: the command line has nothing else to do.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::base::printable;

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no agent answers at {}", socket.display())]
    Nobody {
        /// The admin socket.
        socket: PathBuf,
    },
    /// The socket may not be used by this user.
    #[error("only root may ask the agent at {}", socket.display())]
    Denied {
        /// The admin socket.
        socket: PathBuf,
    },
    /// The daemon hung up, took too long, or its answer makes no sense.
    #[error("the agent at {} gave no usable answer", socket.display())]
    Broken {
        /// The admin socket.
        socket: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// The daemon's status, as its JSON form.
///
/// # Errors
/// When nobody listens, this user may not ask, or the answer is unusable.
pub fn ask(socket: &Path) -> Result<Value, AskError> {
    let body = exchange(socket, "GET /v1/status")?;
    let mut status = serde_json::from_slice(&body).map_err(|error| broken(socket)(error.into()))?;
    // An agent of an earlier version does not do it.
    printable::sanitize(&mut status);
    Ok(status)
}

/// What the daemon is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Take the proxy out of traffic.
    DrainProxy,
    /// Read its configuration again.
    Reload,
    /// Drain the proxy, and start it anew.
    RestartProxy,
    /// End, and leave the proxy to the next agent.
    StepAside,
    /// Get a new key and certificate.
    RotateIdentity,
    /// Drain and stop.
    Stop,
    /// Take the proxy back into traffic.
    UndrainProxy,
}

/// Asks the daemon to do something; it does it after its answer.
///
/// # Errors
/// As [`ask`].
pub fn order(socket: &Path, wish: Wish) -> Result<(), AskError> {
    let request = match wish {
        Wish::DrainProxy => "POST /v1/proxy/drain",
        Wish::Reload => "POST /v1/reload",
        Wish::RestartProxy => "POST /v1/proxy/restart",
        Wish::StepAside => "POST /v1/step-aside",
        Wish::RotateIdentity => "POST /v1/cert/rotate",
        Wish::Stop => "POST /v1/stop",
        Wish::UndrainProxy => "POST /v1/proxy/undrain",
    };
    exchange(socket, request).map(drop)
}

fn exchange(socket: &Path, request: &str) -> Result<Vec<u8>, AskError> {
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => AskError::Denied { socket: socket.to_owned() },
        _ => AskError::Nobody { socket: socket.to_owned() },
    })?;
    talk(&mut stream, request).map_err(broken(socket))
}

/// One HTTP/1.0 exchange: the server closes after its answer.
fn talk(stream: &mut UnixStream, request: &str) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    write!(stream, "{request} HTTP/1.0\r\nHost: vm-agent\r\nContent-Length: 0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or_else(|| io::Error::other("it hung up"))?;
    let body = answer.split_off(end.saturating_add(4));
    let head = String::from_utf8_lossy(&answer);
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status.starts_with('2') { Ok(body) } else { Err(io::Error::other(format!("HTTP {status}"))) }
}

fn broken(socket: &Path) -> impl FnOnce(io::Error) -> AskError {
    move |source| {
        // What the kernel says when the limit of a blocking socket is over (socket(7)).
        let source = match source.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::other(format!("it does not answer within {ANSWER_LIMIT:?}"))
            }
            _ => source,
        };
        AskError::Broken { socket: socket.to_owned(), source }
    }
}

/// The daemon answers from memory; a longer silence means that it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// A status is a few kilobytes; labels and troubles are bounded.
const ANSWER_BYTES: u64 = 4 << 20;
