//! `vm-agent facts`: what templates can say of this machine.

use serde_json::json;

use super::exit::Failure;
use super::options::{Global, Overrides};
use super::run::runtime;
use super::{screen, settings};
use crate::base::trouble::chain;
use crate::config::{self, Document};
use crate::platform::{self, Fact, Facts, PATIENCE, ask, survey};

/// Arguments of `facts`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON with a schema number
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let config = wanted(global, &args.overrides)?;
    let found = survey(&config);
    let mut facts = found.facts;
    let trouble = match found.provider {
        None => None,
        Some(provider) => match runtime()?.block_on(ask(provider, &config, PATIENCE)) {
            Ok(told) => {
                facts.cloud = told.cloud.or(facts.cloud);
                None
            }
            Err(error) => Some((chain(&error), error.hint())),
        },
    };
    if args.json {
        let what = trouble.as_ref().map(|(what, _)| what);
        let all = json!({"schema": 1, "host": facts.host, "cloud": facts.cloud, "trouble": what});
        screen::out(&serde_json::to_string_pretty(&all).map_err(super::other)?)?;
    } else {
        screen::out(render(&facts).trim_end())?;
    }
    if let Some((what, hint)) = trouble {
        screen::say(&format!("{} {what}", screen::paint(screen::Paint::Warn, "!")));
        hint.into_iter().for_each(|hint| screen::say(&format!("  hint: {hint}")));
    }
    Ok(())
}

/// What the configuration says; before there is one, the flags and the defaults.
fn wanted(global: &Global, overrides: &Overrides) -> Result<platform::Config, Failure> {
    let path = global.config.clone().unwrap_or_else(|| settings::paths(global).config_file());
    let facts = if global.config.is_some() || path.exists() {
        let document = settings::from_file(global, overrides)?;
        settings::load(&document, global)?.settings.workload.facts
    } else {
        let mut document = Document::new();
        settings::add_environment_and_flags(&mut document, overrides)?;
        config::load_facts(&document)?
    };
    Ok(platform::Config { other_tags: true, ..facts.platform })
}

/// One line a fact, under its name in templates; `-` for what is not known.
fn render(facts: &Facts) -> String {
    let mut screen = String::new();
    let mut row = |name: &str, value: Option<&str>| {
        screen.push_str(&format!("{name:<22}{}\n", value.unwrap_or("-")));
    };
    // The address is found out by the agent, on its way to istiod.
    for name in Fact::NAMES.into_iter().filter(|name| *name != "address") {
        row(name, name.parse().ok().and_then(|fact| facts.get(&fact)));
    }
    for (key, value) in &facts.cloud.tags {
        row(&Fact::Tag(key.clone()).to_string(), Some(value));
    }
    screen
}
