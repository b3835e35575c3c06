//! An Envoy that the service manager starts for us, in a unit of its own: then the agent needs no
//! right to become another user, and Envoy has none of the agent's rights.
//!
//! The agent connects to a socket, behind which the service manager starts one launcher for each
//! connection (systemd.socket(5), `Accept=yes`), and sends one line: what to start, with Envoy's
//! output beside it. The launcher starts it as its child and answers with two lines: its number,
//! and, when it has ended, how.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::AsyncBufReadExt;
use tokio::time::timeout;

use super::launch::LaunchArgs;
use super::process::describe;

/// What a launcher says.
pub(super) type Report = tokio::io::Lines<tokio::io::BufReader<tokio::net::UnixStream>>;

/// Has Envoy started by the launcher behind this socket; its number, and what is said of its end.
pub(super) async fn order(
    socket: &Path,
    order: &LaunchArgs,
    output: OwnedFd,
) -> io::Result<(u32, Report)> {
    let stream = UnixStream::connect(socket)?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    send(&stream, &line, output.as_fd())?;
    drop(output);
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let mut report = tokio::io::BufReader::new(stream).lines();
    let said = timeout(START_LIMIT, report.next_line()).await??.unwrap_or_default();
    match said.strip_prefix(NUMBER).and_then(|number| number.parse().ok()) {
        Some(pid) => Ok((pid, report)),
        None if said.is_empty() => Err(io::Error::other("the launcher ended without a word")),
        None => Err(io::Error::other(said)),
    }
}

/// The first byte carries the descriptor.
fn send(mut stream: &UnixStream, line: &[u8], output: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let outputs = [output];
    beside.push(SendAncillaryMessage::ScmRights(&outputs));
    let sent = sendmsg(stream, &[IoSlice::new(line)], &mut beside, SendFlags::empty())?;
    stream.write_all(line.get(sent..).unwrap_or_default())
}

/// Serves one order that comes by `socket`: starts Envoy, and waits for its end.
///
/// # Errors
/// When no order comes, or it cannot be said what became of it.
pub fn serve_order(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut stream = UnixStream::from(socket.try_clone_to_owned()?);
    stream.set_read_timeout(Some(START_LIMIT))?;
    let (order, output) = receive(&stream)?;
    let mut child = match start(&order, output) {
        Ok(child) => child,
        Err(error) => return writeln!(stream, "{error}"),
    };
    // An agent that is gone finds it by its note.
    writeln!(stream, "{NUMBER}{}", child.id()).ok();
    let ended = describe(&child.wait());
    writeln!(stream, "{ended}").ok();
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<(LaunchArgs, OwnedFd)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0; 1];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(stream, &mut [IoSliceMut::new(&mut first)], &mut beside, flags)?.bytes;
    let output = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut outputs) => outputs.next(),
        _ => None,
    });
    let output = output.ok_or_else(|| io::Error::other("the order came without an output"))?;
    let mut line = first.get(..got).unwrap_or_default().to_vec();
    BufReader::new(stream.take(ORDER_BYTES)).read_until(b'\n', &mut line)?;
    Ok((serde_json::from_slice(&line)?, output))
}

/// A launcher has the right to become any user; nobody is made root by it.
fn start(order: &LaunchArgs, output: OwnedFd) -> io::Result<std::process::Child> {
    if order.user.is_none_or(|user| user.uid == 0 || user.gid == 0) {
        return Err(io::Error::other("the proxy has to run as a user that is not root"));
    }
    command(Path::new(OURSELVES), order, output)?.spawn()
}

/// The command line that becomes Envoy.
#[expect(clippy::disallowed_methods, reason = "one of the two places that start Envoy")]
pub(super) fn command(
    launcher: &Path,
    order: &LaunchArgs,
    output: OwnedFd,
) -> io::Result<std::process::Command> {
    let mut command = std::process::Command::new(launcher);
    command.arg("launch-proxy").arg("--binary").arg(&order.binary);
    command.arg("--fingerprint").arg(&order.fingerprint);
    command.arg("--directory").arg(&order.directory);
    if let Some(user) = order.user {
        command.args(["--uid", &user.uid.to_string(), "--gid", &user.gid.to_string()]);
    }
    if order.transparent {
        command.arg("--transparent");
    }
    command
        .arg("--")
        .args(&order.args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Ctrl-C in a terminal is for us: the proxy has to drain first.
        .process_group(0);
    Ok(command)
}

const OURSELVES: &str = "/proc/self/exe";
const NUMBER: &str = "started ";
/// A service manager that is busy starts a launcher within a second or two.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Some paths and arguments.
const ORDER_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::super::ProxyUser;
    use super::*;

    fn an_order(user: Option<ProxyUser>) -> LaunchArgs {
        LaunchArgs {
            binary: "/bin/true".into(),
            user,
            transparent: false,
            directory: "/nowhere".into(),
            fingerprint: "f".to_owned(),
            args: vec!["-c".to_owned(), "envoy.json".to_owned()],
        }
    }

    #[tokio::test]
    async fn an_order_arrives_with_its_output_and_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = tokio::task::spawn_blocking(move || {
            let (stream, _) = socket.accept().unwrap();
            let (order, output) = receive(&stream).unwrap();
            std::fs::File::from(output).write_all(b"said").unwrap();
            writeln!(&stream, "started 77").unwrap();
            writeln!(&stream, "exit status 3").unwrap();
            order
        });
        let output = tempfile::NamedTempFile::new().unwrap();
        let user = Some(ProxyUser { uid: 7, gid: 8 });
        let descriptor = output.reopen().unwrap().into();
        let (pid, mut report) = order(&path, &an_order(user), descriptor).await.unwrap();
        assert_eq!(pid, 77);
        assert_eq!(report.next_line().await.unwrap().unwrap(), "exit status 3");
        assert_eq!(report.next_line().await.unwrap(), None);
        assert_eq!(server.await.unwrap().args, ["-c", "envoy.json"]);
        assert_eq!(std::fs::read(output.path()).unwrap(), b"said");
    }

    #[tokio::test]
    async fn nobody_becomes_root_by_a_launcher() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let users = [None, Some(ProxyUser { uid: 0, gid: 9 }), Some(ProxyUser { uid: 9, gid: 0 })];
        let server = tokio::task::spawn_blocking(move || {
            for _ in users {
                let (stream, _) = socket.accept().unwrap();
                serve_order(stream.as_fd()).unwrap();
            }
        });
        for user in users {
            let output = tempfile::tempfile().unwrap().into();
            let error = order(&path, &an_order(user), output).await.unwrap_err();
            assert!(error.to_string().contains("not root"), "{error}");
        }
        server.await.unwrap();
    }
}
