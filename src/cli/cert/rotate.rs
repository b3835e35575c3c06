//! `vm-agent cert rotate`: a new key and certificate, now.

use std::time::Duration;

use serde_json::{Value, json};

use super::show;
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::Global;
use crate::cli::screen::{self, Paint, paint};
use crate::cli::settings;
use crate::cli::status::{self, exit_of, text};
use crate::config;
use crate::status::{Wish, order};

/// Arguments of `cert rotate`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// How long to wait for the new certificate
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = config::duration)]
    timeout: Duration,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let before = status::ask(global)?;
    is_ours(&before)?;
    let socket = settings::paths(global).admin_socket();
    order(&socket, Wish::RotateIdentity).map_err(status::failure)?;
    let mut asked = false;
    let looks = args.timeout.as_millis() / LOOK.as_millis();
    for _ in 0..=looks {
        let now = status::ask(global)?;
        match verdict(&before, &now) {
            Verdict::New => {
                let old = text(&before, "/identity/serial");
                let mark = paint(Paint::Good, "✓");
                screen::say(&format!("{mark} a new key and certificate, in place of {old}"));
                return show(&now, args.json);
            }
            Verdict::Refused(failure) => return Err(failure),
            Verdict::Approval(words) if !asked => {
                asked = true;
                screen::say(&format!("{} {words}", paint(Paint::Warn, "!")));
            }
            Verdict::Approval(_) | Verdict::Waiting => {}
        }
        std::thread::sleep(LOOK);
    }
    let error = anyhow::anyhow!("there is no new certificate after {:?}", args.timeout);
    let hint = "the agent goes on trying, and the old one serves: see `vm-agent status`".to_owned();
    Err(Failure::new(Exit::NotReady, error).hint(hint))
}

/// Certificates that somebody else renews cannot be asked for.
fn is_ours(status: &Value) -> Result<(), Failure> {
    let (who, hint) = match text(status, "/identity/renewal/source").as_str() {
        "files" => {
            ("files", "renew it where those files come from: they are looked at every second")
        }
        "spiffe" => {
            ("a SPIFFE Workload API", "rotate it with the SPIFFE agent: it is taken at once")
        }
        _ => return Ok(()),
    };
    let error = anyhow::anyhow!("this machine's certificate comes from {who}, which renews it");
    Err(Failure::new(Exit::Usage, error).hint(hint.to_owned()))
}

enum Verdict {
    Waiting,
    /// There is another certificate than before.
    New,
    /// A person has to approve it.
    Approval(String),
    /// It was refused, or nobody could be asked.
    Refused(Failure),
}

fn verdict(before: &Value, now: &Value) -> Verdict {
    let serial = "/identity/serial";
    if now.pointer(serial).is_some_and(|new| !new.is_null() && Some(new) != before.pointer(serial))
    {
        return Verdict::New;
    }
    let trouble = now.pointer("/identity/renewal/trouble").cloned().unwrap_or(Value::Null);
    let (what, hint) = (text(&trouble, "/what"), trouble.pointer("/hint").and_then(Value::as_str));
    if text(now, "/identity/renewal/phase") == "approval" {
        return Verdict::Approval(format!("{what}: {}", hint.unwrap_or_default()));
    }
    let failures = |status: &Value| {
        status.pointer("/identity/renewal/failures").and_then(Value::as_u64).unwrap_or_default()
    };
    if failures(now) == failures(before) {
        return Verdict::Waiting;
    }
    // Where waiting does not help, the certificate authority was asked and has refused the credential.
    let exit = match text(&trouble, "/retry").as_str() {
        "later" | "never" => Exit::Credential,
        _ => exit_of(now, &json!({"room": "identity"})),
    };
    let kept = now.pointer("/identity/valid").and_then(Value::as_bool) == Some(true);
    let serves = if kept {
        format!("; the old one serves until {}", text(now, "/identity/not_after"))
    } else {
        String::new()
    };
    let error = anyhow::anyhow!("{what}{serves}");
    Verdict::Refused(Failure::new(exit, error).hint(hint.map(str::to_owned)))
}

/// Fast enough to look live.
const LOOK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn status(serial: &str, failures: u64, phase: &str) -> Value {
        json!({"identity": {"serial": serial, "valid": true, "not_after": "then", "renewal": {
            "phase": phase, "failures": failures, "source": "istiod",
            "trouble": {"what": "the token expired", "hint": "a new one"}}}})
    }

    #[test]
    fn a_refusal_says_why_and_that_the_old_one_serves() {
        let before = status("1", 3, "waiting");
        assert!(matches!(verdict(&before, &status("1", 3, "requesting")), Verdict::Waiting));
        assert!(matches!(verdict(&before, &status("2", 3, "waiting")), Verdict::New));
        let Verdict::Refused(failure) = verdict(&before, &status("1", 4, "retrying")) else {
            panic!()
        };
        assert_eq!((failure.exit, failure.hint.as_deref()), (Exit::Credential, Some("a new one")));
        let words = failure.error.to_string();
        assert!(words.ends_with("the token expired; the old one serves until then"), "{words}");
        let Verdict::Approval(words) = verdict(&before, &status("1", 3, "approval")) else {
            panic!()
        };
        assert_eq!(words, "the token expired: a new one");
    }

    #[test]
    fn who_renews_it_is_named_where_it_is_not_the_agent() {
        assert!(is_ours(&status("1", 0, "waiting")).is_ok());
        let files = json!({"identity": {"renewal": {"source": "files"}}});
        assert_eq!(is_ours(&files).unwrap_err().exit, Exit::Usage);
    }
}
