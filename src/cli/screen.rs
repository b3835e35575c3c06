//! What people read: data on standard output, everything else on standard error. A closed pipe
//! ends the output silently; meaning is never carried by colour alone.

use std::io::{self, IsTerminal, Write};

use super::exit::{Exit, Failure};

/// Writes a line of data to standard output.
pub(super) fn out(line: &str) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Other, error))
        }
        _ => Ok(()),
    }
}

/// Writes a line for people to standard error. There is nowhere to report that it failed.
pub(super) fn say(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}

/// Writes why a command failed: each line of the cause, then the hint.
pub(super) fn failure(failure: &Failure) {
    let text = crate::base::trouble::chain(failure.error.as_ref());
    say(&format!("{} {text}", paint(Paint::Bad, "error:")));
    if let Some(hint) = &failure.hint {
        say(&format!("{} {hint}", paint(Paint::Plain, " hint:")));
    }
}

/// What a mark or word stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Paint {
    /// Done, or as it should be.
    Good,
    /// Needs attention.
    Warn,
    /// Failed.
    Bad,
    /// No colour.
    Plain,
}

/// The text in colour where standard error is a terminal that wants it (<https://no-color.org>).
pub(super) fn paint(paint: Paint, text: &str) -> String {
    let code = match paint {
        Paint::Good => "32",
        Paint::Warn => "33",
        Paint::Bad => "31",
        Paint::Plain => return text.to_owned(),
    };
    let wanted = std::env::var_os("NO_COLOR").is_none() && io::stderr().is_terminal();
    if wanted { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
