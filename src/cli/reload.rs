//! `vm-agent reload`: has the running agent read its configuration again, and says what it made of
//! it.

use std::time::Duration;

use serde_json::Value;

use super::exit::{Exit, Failure};
use super::options::Global;
use super::screen::{self, Paint, paint};
use super::{settings, status};
use crate::status::{Wish, order};

pub(super) fn run(global: &Global) -> Result<(), Failure> {
    let before = reads(&status::ask(global)?);
    let socket = settings::paths(global).admin_socket();
    order(&socket, Wish::Reload).map_err(status::failure)?;
    let looks = LIMIT.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        let now = status::ask(global)?;
        if reads(&now) != before {
            return report(&now);
        }
        std::thread::sleep(LOOK);
    }
    let error = anyhow::anyhow!("the agent has not read its configuration within {LIMIT:?}");
    Err(Failure::new(Exit::Other, error).hint("look at its log".to_owned()))
}

fn report(status: &Value) -> Result<(), Failure> {
    if let Some(what) = status.pointer("/configuration/trouble/what").and_then(Value::as_str) {
        let hint = status::text(status, "/configuration/trouble/hint");
        return Err(Failure::new(Exit::Configuration, anyhow::anyhow!("{what}")).hint(hint));
    }
    screen::say(&format!("{} the configuration was read again", paint(Paint::Good, "✓")));
    let restart = status.pointer("/configuration/restart").and_then(Value::as_array);
    for setting in restart.into_iter().flatten().filter_map(Value::as_str) {
        let words = format!("{setting} has changed and needs a restart of the agent");
        screen::say(&format!("{} {words}", paint(Paint::Warn, "!")));
    }
    Ok(())
}

fn reads(status: &Value) -> Option<u64> {
    status.pointer("/configuration/reads").and_then(Value::as_u64)
}

/// Reading a file takes moments; looking for the machine's address before it may take a few seconds.
const LIMIT: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(50);
