//! `vm-agent status --watch`: what is so, and whenever it changes.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{ask, conditions, render, rows};
use crate::base::clock::{self, rfc3339};
use crate::cli::exit::{Exit, Failure};
use crate::cli::interrupt::Interrupts;
use crate::cli::options::Global;
use crate::cli::run::runtime;
use crate::cli::screen::{self, Reader};

/// Watches until a signal comes or nobody reads any more.
pub(super) fn run(global: &Global, json: bool) -> Result<(), Failure> {
    let form = match json {
        true => Form::Json,
        false if screen::draws() => Form::Screen,
        false => Form::Lines,
    };
    runtime()?.block_on(async {
        let mut interrupts = Interrupts::new()?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Last::default();
        if form == Form::Screen {
            // From its corner on, the screen is ours.
            screen::put("\x1b[2J")?;
        }
        loop {
            tokio::select! {
                biased;
                _ = interrupts.next() => return Ok(()),
                _ = look.tick() => {}
            }
            let now = match ask(global) {
                // An agent that is away may come back.
                Err(failure) if failure.exit == Exit::Host => return Err(failure),
                now => now.map_err(|failure| format!("{:#}", failure.error)),
            };
            let shown = match last.news(form, &now) {
                Some(news) => screen::put(&news)?,
                None => reader(),
            };
            if shown == Reader::Gone {
                return Ok(());
            }
        }
    })
}

/// How changes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A whole snapshot a line.
    Json,
    /// One line for each row that is different.
    Lines,
    /// The screen is drawn anew.
    Screen,
}

/// What was shown last, without what changes all the time.
#[derive(Debug, Default)]
struct Last {
    /// The whole, as text or JSON.
    whole: Option<String>,
    /// Rows and conditions, by what tells them apart.
    lines: Vec<String>,
}

impl Last {
    /// What is new since the last time, as it is to be written.
    fn news(&mut self, form: Form, now: &Result<Value, String>) -> Option<String> {
        match form {
            Form::Json => {
                let (shown, key) = match now {
                    Ok(status) => (status.clone(), still(status)),
                    Err(away) => (json!({"away": away}), json!({"away": away})),
                };
                self.is_new(key.to_string()).then(|| format!("{shown}\n"))
            }
            Form::Screen => {
                let text = now.as_ref().map_or_else(|away| format!("{away}\n"), render);
                self.is_new(text.clone()).then(|| redrawn(&text))
            }
            Form::Lines => self.lines(now),
        }
    }

    fn is_new(&mut self, whole: String) -> bool {
        let is_new = self.whole.as_ref() != Some(&whole);
        self.whole = Some(whole);
        is_new
    }

    fn lines(&mut self, now: &Result<Value, String>) -> Option<String> {
        let row = |(name, value): (&str, String)| format!("{name:<15}{value}");
        let (shown, keys): (Vec<_>, Vec<_>) = match now {
            Err(away) => (vec![away.clone()], vec![away.clone()]),
            Ok(status) => {
                let still = still(status);
                let shown = rows(status).into_iter().map(row).chain(conditions(status));
                (
                    shown.collect(),
                    rows(&still).into_iter().map(row).chain(conditions(&still)).collect(),
                )
            }
        };
        let at = rfc3339(clock::system().now());
        let all = shown.iter().zip(&keys);
        let new = all.filter(|(_, key)| !self.lines.contains(key));
        let mut news: String = new.map(|(line, _)| format!("{at} {line}\n")).collect();
        let over = self.lines.iter().filter(|line| line.contains('!') && !keys.contains(line));
        let over = over.filter_map(|line| line.lines().next());
        news.extend(over.map(|line| format!("{at} over: {line}\n")));
        self.lines = keys;
        (!news.is_empty()).then_some(news)
    }
}

/// A status without what changes all the time by itself.
fn still(status: &Value) -> Value {
    match status {
        Value::Object(all) => {
            let kept = all.iter().filter(|(name, _)| !MOVING.contains(&name.as_str()));
            kept.map(|(name, value)| (name.clone(), still(value))).collect()
        }
        Value::Array(all) => all.iter().map(still).collect(),
        other => other.clone(),
    }
}

/// Draws over what is there, without clearing it first: that would flicker.
fn redrawn(text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\x1b[H{lines}\x1b[J")
}

/// Whether somebody still reads: a pipe tells when its other end is closed.
fn reader() -> Reader {
    let stdout = std::io::stdout();
    let mut wanted = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let closed = poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|count| count > 0);
    let [shown] = wanted;
    let gone = shown.revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
    if closed && gone { Reader::Gone } else { Reader::There }
}

/// Fields that change while nothing happens, or with every request.
const MOVING: [&str; 14] = [
    "acks",
    "ahead_ms",
    "answered",
    "cached",
    "error_ms",
    "expires_in",
    "forwarded",
    "measured_at",
    "pushes",
    "queries",
    "requests",
    "responses",
    "skew_ms",
    "streams",
];
/// Fast enough for a person who watches.
const LOOK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn status(proxy: &str, left: i64) -> Result<Value, String> {
        Ok(json!({
            "phase": "ready", "ready": true,
            "identity": {"id": "spiffe://a/ns/b/sa/c", "valid": true, "expires_in": left},
            "proxy": {"phase": proxy},
        }))
    }

    fn words(news: Option<String>) -> Vec<String> {
        let text = news.unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn only_what_is_different_is_a_line_and_time_that_passes_is_no_difference() {
        let mut last = Last::default();
        let first = words(last.news(Form::Lines, &status("starting", 100)));
        assert!(first.contains(&"proxy          starting".to_owned()), "{first:?}");
        assert_eq!(last.news(Form::Lines, &status("starting", 99)), None);
        let next = words(last.news(Form::Lines, &status("ready", 98)));
        assert_eq!(next, ["proxy          ready"]);
        let away = words(last.news(Form::Lines, &Err("no agent answers".to_owned())));
        assert_eq!(away, ["no agent answers"]);
        assert_eq!(last.news(Form::Lines, &Err("no agent answers".to_owned())), None);
    }

    #[test]
    fn a_condition_is_said_when_it_comes_and_when_it_goes() {
        let mut last = Last::default();
        let wrong =
            Ok(json!({"conditions": [{"room": "dns", "what": "no resolver", "hint": "add one"}]}));
        drop(last.news(Form::Lines, &Ok(json!({}))));
        assert_eq!(last.news(Form::Lines, &wrong).unwrap().lines().count(), 2, "with its hint");
        assert_eq!(words(last.news(Form::Lines, &Ok(json!({})))), ["over: ! dns: no resolver"]);
    }

    #[test]
    fn programs_get_a_whole_snapshot_for_each_change() {
        let mut last = Last::default();
        let first = last.news(Form::Json, &status("starting", 100)).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&first).unwrap()["identity"]["expires_in"], 100);
        assert_eq!(last.news(Form::Json, &status("starting", 99)), None);
        assert!(last.news(Form::Json, &status("ready", 98)).is_some());
        let away = last.news(Form::Json, &Err("nobody".to_owned())).unwrap();
        assert_eq!(away, "{\"away\":\"nobody\"}\n");
    }

    #[test]
    fn a_screen_is_drawn_from_its_corner_and_cleared_below() {
        assert_eq!(redrawn("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
