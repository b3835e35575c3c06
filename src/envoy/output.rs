//! Envoy's output: through a named pipe in the run directory, so that an Envoy whose agent is dead
//! can go on talking, and the next agent hears what was said meanwhile.
//!
//! Envoy's end is open for reading too and does not block: there is always a reader, and a pipe that
//! is full costs words and never a worker. A lock on it, which the kernel keeps as long as Envoy
//! lives, says that an Envoy runs here even where nothing else does.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::pipe::fcntl_setpipe_size;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::logs::Lines;
use crate::base::fsio;
use crate::base::tasks::Tasks;

/// The agent's side of the pipe.
pub(super) struct Output {
    path: PathBuf,
    questions: mpsc::Sender<oneshot::Sender<String>>,
}

impl Output {
    /// Opens the pipe of a run directory, made where there is none, and reads it from now on into our
    /// log, until this is dropped.
    pub(super) fn open(directory: &Path, tasks: &Tasks) -> io::Result<Self> {
        let path = directory.join(PIPE);
        fsio::make_pipe(&path).map_err(io::Error::other)?;
        // Open for writing, too, there is no end between two processes.
        let pipe = Receiver::from_owned_fd(open_pipe(&path)?)?;
        let (questions, asked) = mpsc::channel(1);
        // It ends with us, and reads what is there even when everything stops.
        tasks.detached("envoy-output", read(pipe, asked));
        Ok(Self { path, questions })
    }

    /// Envoy's side, locked. `None` when another Envoy holds the lock.
    pub(super) fn for_process(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pipe) = lock(&self.path)? else { return Ok(None) };
        // A smaller one does as well, for fewer words.
        fcntl_setpipe_size(&pipe, BYTES).ok();
        Ok(Some(pipe))
    }

    /// The last lines since this was asked last, once all that was said has been read.
    pub(super) async fn last_words(&self) -> String {
        let (answer, answered) = oneshot::channel();
        match self.questions.send(answer).await {
            Ok(()) => answered.await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }
}

/// Whether an Envoy runs in a run directory, noted or not.
pub(super) fn is_taken(directory: &Path) -> bool {
    matches!(lock(&directory.join(PIPE)), Ok(None))
}

/// A descriptor of our own with the lock; `None` when somebody else has it.
fn lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let pipe = open_pipe(path)?;
    match flock(&pipe, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        locked => Ok(locked.map(|()| Some(pipe))?),
    }
}

fn open_pipe(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(open(path, flags, Mode::empty())?)
}

async fn read(pipe: Receiver, mut asked: mpsc::Receiver<oneshot::Sender<String>>) {
    let mut lines = Lines::default();
    loop {
        tokio::select! {
            ready = pipe.readable() => {
                if ready.is_err() {
                    return;
                }
                lines.begin_turn();
                if take(&mut lines, TURN, |block| pipe.try_read(block)) {
                    // Somebody who talks without end: the rest of the agent has its turn first.
                    sleep(PAUSE).await;
                }
            }
            question = asked.recv() => {
                // Not what the runtime has heard of, but what is there.
                lines.begin_turn();
                take(&mut lines, ALL, |block| Ok(rustix::io::read(&pipe, block)?));
                let words = lines.finish();
                match question {
                    Some(answer) => drop(answer.send(words)),
                    None => return,
                }
            }
        }
    }
}

/// Takes what is there, at most so many blocks. Whether there may be more.
fn take(
    lines: &mut Lines,
    blocks: usize,
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> bool {
    let mut block = [0; BLOCK];
    for _ in 0..blocks {
        match read(&mut block) {
            Ok(size) if size > 0 => lines.take(block.get(..size).unwrap_or_default()),
            _ => return false,
        }
        if blocks == TURN && lines.is_turn_over() {
            break;
        }
    }
    true
}

/// The pipe's name in the run directory.
pub(super) const PIPE: &str = "envoy.out";
/// What an agent may miss without words being lost: the most that the kernel gives to everybody.
const BYTES: usize = 1 << 20;
const BLOCK: usize = 8 << 10;
/// Blocks of one turn.
const TURN: usize = 16;
/// Twice a full pipe.
const ALL: usize = 256;
/// Between two turns of an Envoy that talks without end: with [`TURN`] some ten megabytes a second.
const PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_said_between_two_agents_is_heard_by_the_second() {
        let directory = tempfile::tempdir().unwrap();
        let (tasks, _ends) = Tasks::new();
        let first = Output::open(directory.path(), &tasks).unwrap();
        let envoy = first.for_process().unwrap().unwrap();
        let say = |words: &[u8]| rustix::io::write(&envoy, words).unwrap();
        say(b"one\n");
        assert_eq!(first.last_words().await, "one");
        drop(first);
        let (next, _ends) = Tasks::new();
        tasks.finish(Duration::from_secs(5)).await;
        say(b"two\n");
        let second = Output::open(directory.path(), &next).unwrap();
        say(b"three\n");
        assert_eq!(second.last_words().await, "two | three");
    }

    #[tokio::test]
    async fn the_lock_tells_of_a_process_and_a_full_pipe_costs_words_only() {
        let directory = tempfile::tempdir().unwrap();
        let (tasks, _ends) = Tasks::new();
        let output = Output::open(directory.path(), &tasks).unwrap();
        let envoy = output.for_process().unwrap().unwrap();
        assert!(output.for_process().unwrap().is_none());
        drop(output);
        tasks.finish(Duration::from_secs(5)).await;
        let mut written = 0;
        while let Ok(size) = rustix::io::write(&envoy, &[b'x'; 4096]) {
            written += size;
        }
        assert!(written > 0);
        drop(envoy);
        let (tasks, _ends) = Tasks::new();
        let next = Output::open(directory.path(), &tasks).unwrap();
        assert!(next.for_process().unwrap().is_some());
    }
}
