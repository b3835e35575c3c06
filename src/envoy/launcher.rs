//! An Envoy that the service manager starts for us, in a unit of its own: then the agent needs no
//! right to become another user, and Envoy has none of the agent's rights.
//!
//! The agent connects to a socket, behind which the service manager starts one launcher for each
//! connection (systemd.socket(5), `Accept=yes`), and sends one line: what to start, with Envoy's
//! output beside it. The launcher starts it as its child and answers with two lines: its number,
//! and, when it has ended, how.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncBufReadExt;
use tokio::time::timeout;

use super::ProxyUser;
use super::launch::LaunchArgs;
use super::process::describe;
use crate::base::passing;

/// What a launcher says.
pub(super) type Report = tokio::io::Lines<tokio::io::BufReader<tokio::net::UnixStream>>;

/// Has Envoy started by the launcher behind this socket; its number, and what is said of its end.
pub(super) async fn order(
    socket: &Path,
    order: &LaunchArgs,
    output: OwnedFd,
) -> io::Result<(u32, Report)> {
    let stream = passing::order(socket, order, Some(output.as_fd()))?;
    drop(output);
    let mut report = tokio::io::BufReader::new(stream).lines();
    let said = timeout(START_LIMIT, report.next_line()).await??.unwrap_or_default();
    match said.strip_prefix(NUMBER).and_then(|number| number.parse().ok()) {
        Some(pid) => Ok((pid, report)),
        None if said.is_empty() => Err(io::Error::other("the launcher ended without a word")),
        None => Err(io::Error::other(said)),
    }
}

/// What a launcher starts, by what this machine's owner has said, and not by what the agent says: the agent has
/// fewer rights, and must not get more by an order.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// The users that Envoy may run as.
    pub users: Vec<ProxyUser>,
    /// Where it may run: there and below.
    pub directory: PathBuf,
}

impl Allowed {
    /// Whether a user and group by number are the proxy's.
    #[must_use]
    pub fn has_user(&self, user: Option<(u32, u32)>) -> bool {
        user.is_some_and(|(uid, gid)| self.users.contains(&ProxyUser { uid, gid }))
    }

    fn check(&self, order: &LaunchArgs) -> Result<(), String> {
        let Some(user) = order.user.filter(|user| user.uid != 0 && user.gid != 0) else {
            return Err("the proxy has to run as a user that is not root".to_owned());
        };
        if !self.users.contains(&user) {
            let ProxyUser { uid, gid } = user;
            return Err(format!("user {uid} with group {gid} is not the proxy's (proxy.user)"));
        }
        let climbs = order.directory.components().any(|part| part == Component::ParentDir);
        if climbs || !order.directory.starts_with(&self.directory) {
            return Err(format!("{} is not the proxy's directory", order.directory.display()));
        }
        let path = order.binary.display();
        let found = std::fs::metadata(&order.binary).map_err(|error| format!("{path}: {error}"))?;
        if !found.is_file() || found.uid() != 0 || found.mode() & 0o022 != 0 {
            let what = "not a file that belongs to root and that only root may write";
            return Err(format!("{path} is {what}"));
        }
        Ok(())
    }
}

/// Serves one order that came by `stream`: starts Envoy, and waits for its end.
///
/// # Errors
/// When it cannot be understood, or it cannot be said what became of it.
pub fn serve_order(
    mut stream: UnixStream,
    line: &[u8],
    output: Option<OwnedFd>,
    allowed: &Allowed,
) -> io::Result<()> {
    let order: LaunchArgs = serde_json::from_slice(line)?;
    let output = output.ok_or_else(|| io::Error::other("the order came without an output"))?;
    if let Err(why) = allowed.check(&order) {
        return writeln!(stream, "the launcher refuses: {why}");
    }
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

fn start(order: &LaunchArgs, output: OwnedFd) -> io::Result<std::process::Child> {
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
    if order.trial {
        command.arg("--trial");
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

/// This program.
pub(super) const OURSELVES: &str = "/proc/self/exe";
const NUMBER: &str = "started ";
/// A service manager that is busy starts a launcher within a second or two.
const START_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn an_order(user: Option<ProxyUser>) -> LaunchArgs {
        LaunchArgs {
            binary: "/bin/true".into(),
            user,
            transparent: false,
            directory: "/nowhere".into(),
            fingerprint: "f".to_owned(),
            trial: false,
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
            let (line, output) = passing::receive(&stream, 1 << 20).unwrap();
            let order: LaunchArgs = serde_json::from_slice(&line).unwrap();
            std::fs::File::from(output.unwrap()).write_all(b"said").unwrap();
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
    async fn a_launcher_starts_nothing_as_anybody_else_or_elsewhere_than_the_machines_owner_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let user = |uid, gid| Some(ProxyUser { uid, gid });
        let mut orders: Vec<(LaunchArgs, &str)> =
            [None, user(0, 9), user(9, 0)].map(|user| (an_order(user), "not root")).into();
        orders.push((an_order(user(8, 7)), "not the proxy's"));
        for directory in ["/", "/nowhere/../etc"] {
            let directory = directory.into();
            orders.push((LaunchArgs { directory, ..an_order(user(7, 8)) }, "directory"));
        }
        let ours = directory.path().join("envoy");
        std::fs::File::create(&ours)
            .unwrap()
            .set_permissions(Permissions::from_mode(0o777))
            .unwrap();
        for (binary, why) in
            [("/dev/null".into(), "only root may write"), (ours, "only root may write")]
        {
            orders.push((LaunchArgs { binary, ..an_order(user(7, 8)) }, why));
        }
        let count = orders.len();
        let server = tokio::task::spawn_blocking(move || {
            let users = vec![ProxyUser { uid: 7, gid: 8 }];
            let allowed = Allowed { users, directory: "/nowhere".into() };
            for _ in 0..count {
                let (stream, _) = socket.accept().unwrap();
                let (line, output) = passing::receive(&stream, 1 << 20).unwrap();
                serve_order(stream, &line, output, &allowed).unwrap();
            }
        });
        for (wrong, why) in orders {
            let output = tempfile::tempfile().unwrap().into();
            let error = order(&path, &wrong, output).await.unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        server.await.unwrap();
    }
}
