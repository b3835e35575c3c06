//! What people see on a terminal, by way of a pseudoterminal.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::host::Host;

/// What a command writes to a terminal, and the status that it ends with.
async fn shown(mut command: Command, kind: &str) -> (String, Option<i32>) {
    // Closed on exec: the daemon must not keep the terminal open.
    let mut master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = || {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits());
        Stdio::from(options.open(ptsname_r(&master).unwrap()).unwrap())
    };
    command.stdout(slave()).stderr(slave()).env("TERM", kind);
    let mut child = command.spawn().unwrap();
    drop(command);
    let read = move || {
        let mut all = Vec::new();
        let mut some = [0; 4096];
        // The kernel says EIO when nobody has the terminal open any more.
        while let Ok(size @ 1..) = master.read(&mut some) {
            all.extend_from_slice(&some[..size]);
        }
        (String::from_utf8_lossy(&all).into_owned(), child.wait().unwrap().code())
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// What stays on the screen: each line as it was last redrawn, without colours.
fn screen(text: &str) -> Vec<String> {
    let last = |line: &str| line.rsplit("\x1b[K").next().unwrap_or_default().to_owned();
    let plain = |line: String| line.replace("\x1b[32m", "").replace("\x1b[0m", "");
    text.split("\r\n").map(last).map(plain).filter(|line| !line.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_the_phase_that_goes_on_is_redrawn_until_it_is_done() {
    let host = Host::new().await;
    host.play_envoy();
    let (text, status) = shown(host.command(&host.bundle("one"), &[]), "xterm").await;
    assert_eq!(status, Some(0), "{text:?}");
    assert!(text.contains("\r\x1b[K◐ checks … 0.0 s"), "{text:?}");
    assert!(text.contains(" identity, control plane, registration, proxy … "), "{text:?}");
    assert!(text.contains("\x1b[32m✓\x1b[0m identity       spiffe://"), "{text:?}");
    let screen = screen(&text);
    assert!(screen.iter().all(|line| line.starts_with("✓ ")), "{screen:#?}");
    let last = screen.last().unwrap();
    assert!(last.starts_with("✓ ready          vm1 is in the mesh as spiffe://"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_colours_there_are_none_and_a_plain_terminal_gets_plain_lines() {
    let host = Host::new().await;
    let bundle = host.bundle("one");
    for kind in ["xterm", "dumb"] {
        let mut command = host.command(&bundle, &["--dry-run"]);
        command.env("NO_COLOR", "1");
        let (text, status) = shown(command, kind).await;
        assert_eq!(status, Some(0), "{text:?}");
        assert!(text.contains("✓ checks") && !text.contains("\x1b[3"), "{text:?}");
        assert_eq!(text.contains("\x1b[K"), kind == "xterm", "{text:?}");
    }
}
