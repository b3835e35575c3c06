//! What a join would change, told without changing it.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Job, Way};
use crate::agent::CapturePlan;
use crate::cli::exit::{Exit, Failure};
use crate::cli::progress::{Shape, seconds};
use crate::cli::service::UNIT;
use crate::cli::{capture, screen};
use crate::join::{Change, Fate, What};

/// All that a join would change.
struct Preview {
    changes: Vec<Change>,
    /// The configuration's text, which holds no secret.
    config: String,
    /// Whether the service is enabled and started; not with `--foreground`.
    unit: bool,
    /// The commands for the redirect rules, where there are any.
    rules: Option<String>,
}

/// Prints it.
pub(super) async fn show(job: &Job<'_>, rules: Option<CapturePlan>) -> Result<(), Failure> {
    let changes = job.files.changes();
    let changes =
        changes.map_err(|error| Failure::new(Exit::Host, error).hint(crate::cli::sudo_hint()))?;
    let rules = match rules {
        None => None,
        Some(plan) => Some(plan.capture.plan(&plan.config).await.map_err(capture::failure)?),
    };
    let preview = Preview {
        changes,
        config: job.files.config.1.clone(),
        unit: matches!(job.way, Way::Service(_)),
        rules: rules.map(|plan| plan.to_string()),
    };
    job.progress.end(Ok(&preview.event(job.progress.elapsed())));
    if job.args.shape() == Shape::Json {
        return Ok(());
    }
    screen::out(preview.text().trim_end())
}

impl Preview {
    fn text(&self) -> String {
        let mut text = "Nothing was changed. A join would do this:\n".to_owned();
        for Change { path, mode, what, fate } in &self.changes {
            let fate = word(*fate);
            let what = match what {
                What::Directory => "directory".to_owned(),
                What::File { bytes } => format!("{bytes} bytes"),
            };
            text.push_str(&format!("{fate:<10} {mode:04o} {} ({what})\n", path.display()));
        }
        if self.unit {
            text.push_str(&format!("{:<10} {UNIT}, at each boot\n", "enable"));
            text.push_str(&format!("{:<10} {UNIT}\n", "restart"));
        }
        match &self.rules {
            None => text.push_str("No redirect rules.\n"),
            Some(rules) => {
                text.push_str("\nOnce the proxy is ready, the agent redirects traffic by:\n");
                text.extend(indented(rules));
            }
        }
        text.push_str("\nThe configuration would be:\n");
        text.extend(indented(&self.config));
        text
    }

    fn event(&self, took: Duration) -> Value {
        let changes = self.changes.iter().map(|change| {
            let Change { path, mode, what, fate } = change;
            let bytes = if let What::File { bytes } = what { Some(*bytes) } else { None };
            json!({
                "kind": if bytes.is_some() { "file" } else { "directory" },
                "path": path, "mode": format!("{mode:04o}"), "bytes": bytes, "change": word(*fate),
            })
        });
        let unit = self.unit.then(|| json!({"name": UNIT, "enable": true, "restart": true}));
        json!({
            "result": "dry-run", "exit": 0, "changes": changes.collect::<Vec<_>>(), "unit": unit,
            "rules": self.rules, "configuration": self.config, "seconds": seconds(took),
        })
    }
}

fn indented(text: &str) -> impl Iterator<Item = String> {
    text.lines().map(|line| format!("  {line}\n"))
}

fn word(fate: Fate) -> &'static str {
    match fate {
        Fate::New => "new",
        Fate::Replaced => "replaced",
        Fate::Unchanged => "unchanged",
    }
}
