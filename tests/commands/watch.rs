//! What is so, and whenever it changes.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::bed::{AGENT, Bed};

fn watch(bed: &Bed, more: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(AGENT);
    command.arg("--root").arg(bed.root.path()).args(["status", "--watch"]).args(more);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdout)
}

async fn next(mut lines: BufReader<ChildStdout>) -> (String, BufReader<ChildStdout>) {
    tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        (line, lines)
    })
    .await
    .unwrap()
}

async fn ended(mut child: Child) -> Option<i32> {
    tokio::task::spawn_blocking(move || child.wait().unwrap().code()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_away_is_said_and_found_when_it_comes() {
    let mut bed = Bed::new().await;
    let (child, lines) = watch(&bed, &["--json"]);
    let (line, mut lines) = next(lines).await;
    let away: Value = serde_json::from_str(&line).unwrap();
    assert!(away["away"].as_str().unwrap().contains("no agent answers"), "{away}");
    bed.run(json!({}));
    loop {
        let (line, rest) = next(lines).await;
        lines = rest;
        let status: Value = serde_json::from_str(&line).unwrap();
        if status["identity"]["valid"] == true {
            break;
        }
        assert!(!line.is_empty());
    }
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(ended(child).await, Some(0), "Ctrl-C is how it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_nobody_reads_any_more() {
    let bed = Bed::new().await;
    let (child, lines) = watch(&bed, &[]);
    let (line, lines) = next(lines).await;
    assert!(line.contains("no agent answers"), "{line}");
    drop(lines);
    // Nothing changes: the pipe itself tells.
    assert_eq!(ended(child).await, Some(0));
}
