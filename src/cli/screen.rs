//! What people read: data on standard output, everything else on standard error. A closed pipe
//! ends the output silently; meaning is never carried by colour alone.

use std::io::{self, IsTerminal, Write};

use super::exit::{Exit, Failure};
use crate::base::printable;
use crate::base::trouble::chain_in_lines;

/// Who reads standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Somebody, as far as is known.
    There,
    /// Nobody any more: the pipe is closed.
    Gone,
}

/// Writes one or more lines of data to standard output. What a terminal would obey is escaped in the
/// way of JSON, in which it means the same.
pub(super) fn out(line: &str) -> Result<(), Failure> {
    put(&format!("{}\n", safe(line))).map(drop)
}

/// Writes text to standard output as it is.
pub(super) fn put(text: &str) -> Result<Reader, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::new(Exit::Other, error)),
    }
}

/// Writes a line for people to standard error. There is nowhere to report that it failed.
pub(super) fn say(line: &str) {
    drop(writeln!(io::stderr().lock(), "{}", safe(line)));
}

/// Replaces the line that the cursor is in on standard error, which is a terminal.
pub(super) fn draw(line: &str) {
    let mut stderr = io::stderr().lock();
    drop(write!(stderr, "\r\x1b[K{}", safe(line)).and_then(|()| stderr.flush()));
}

/// Whether standard error is a terminal on which lines can be redrawn.
pub(super) fn is_live() -> bool {
    io::stderr().is_terminal() && has_cursor()
}

/// Whether standard output is a terminal that can be drawn on.
pub(super) fn draws() -> bool {
    io::stdout().is_terminal() && has_cursor()
}

fn has_cursor() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// Writes why a command failed: each line of the cause, then the hint.
pub(super) fn failure(failure: &Failure) {
    let text = chain_in_lines(failure.error.as_ref());
    say(&format!("{} {text}", paint(Paint::Bad, "error:")));
    if let Some(hint) = &failure.hint {
        say(&format!("{} {hint}", paint(Paint::Plain, " hint:")));
    }
}

/// The text with nothing that a terminal would obey but the colours of [`paint`].
fn safe(text: &str) -> String {
    let colour = |(start, part): (usize, &str)| {
        let colour =
            COLOURS.iter().find_map(|colour| part.strip_prefix(colour).map(|rest| (colour, rest)));
        match colour {
            _ if start == 0 => printable::lines(part).into_owned(),
            Some((colour, rest)) => format!("\x1b{colour}{}", printable::lines(rest)),
            None => format!("{ESCAPE}{}", printable::lines(part)),
        }
    };
    text.split('\x1b').enumerate().map(colour).collect()
}

/// What [`paint`] writes after the escape character.
const COLOURS: [&str; 4] = ["[32m", "[33m", "[31m", "[0m"];
const ESCAPE: &str = "\\u001b";

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
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let wanted = !refused && io::stderr().is_terminal();
    if wanted { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_our_colours_and_nothing_else_to_obey() {
        let shown =
            safe("\x1b[33m!\x1b[0m identity: \x1b[2J\x1b]0;x\x07\u{9b}\u{202e}\r\n hint: a\tb");
        let wanted =
            "\x1b[33m!\x1b[0m identity: \\u001b[2J\\u001b]0;x\\u0007\\u009b\\u202e\\r\n hint: a\tb";
        assert_eq!(shown, wanted);
        assert_eq!(safe("plain\n text"), "plain\n text");
    }
}
