//! `ISTIO_AGENT_FLAGS`: arguments of `pilot-agent proxy` that Istio's script passes on
//! (`pilot/cmd/pilot-agent/app/cmd.go`).

use std::collections::BTreeMap;

use serde_json::json;

use super::translate::Settings;
use super::{Fact, Facts, Reader};

impl Reader<'_> {
    pub(super) fn agent_flags(&mut self, facts: &Facts, settings: &mut Settings) {
        let Some(fact) = facts.variables.get(VARIABLE) else { return };
        let mut flags = self.parse_flags(fact);
        let mut take = |name: &str| flags.remove(name).filter(|value| !value.is_empty());
        let (level, components) = (take("proxyLogLevel"), take("proxyComponentLogLevel"));
        let concurrency = take("concurrency");
        let scopes = take("log_output_level");
        let json_log = take("log_as_json").is_some_and(|value| value != "false");
        let domain = take("domain");
        if level.is_some() || components.is_some() {
            let level = level.unwrap_or_else(|| "warning".to_owned());
            let all = [Some(level), components].into_iter().flatten().collect::<Vec<_>>();
            settings.put("proxy", "logLevel", json!(all.join(",")), &fact.origin);
        }
        if let Some(workers) = concurrency {
            match workers.parse::<u32>() {
                Ok(workers) => {
                    settings.put("proxy", "concurrency", json!(workers), &fact.origin);
                }
                Err(_) => {
                    let what = format!("--concurrency: found {workers:?}, expected a number");
                    self.wrong(&fact.origin, VARIABLE, what);
                }
            }
        }
        if json_log {
            settings.put("log", "format", json!("json"), &fact.origin);
        }
        if let Some(domain) = domain {
            settings.put("dns", "domain", json!(domain), &fact.origin);
        }
        self.log_level(scopes.as_deref().unwrap_or_default(), fact, settings);
        for (name, value) in flags {
            if REPLACING.contains(&name.as_str()) {
                let what = format!("--{name}={value}: vm-agent cannot do this; remove the flag");
                self.wrong(&fact.origin, VARIABLE, what);
            } else {
                let what = format!("--{name}: it has no meaning for vm-agent; it is ignored");
                self.warn(&fact.origin, VARIABLE, what);
            }
        }
    }

    /// `--name=value` and `--name value`, split at spaces as the script does.
    fn parse_flags(&mut self, fact: &Fact) -> BTreeMap<String, String> {
        let mut flags = BTreeMap::new();
        let mut words = fact.value.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--") else {
                let what = format!("found {word:?}, expected flags such as --proxyLogLevel=debug");
                self.wrong(&fact.origin, VARIABLE, what);
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (
                    flag,
                    words.next_if(|next| !next.starts_with('-')).unwrap_or_default().to_owned(),
                ),
            };
            // A flag without a value is a switch.
            let value = if value.is_empty() { "true".to_owned() } else { value };
            flags.insert(name.to_owned(), value);
        }
        flags
    }

    /// `LEVEL` or `SCOPE:LEVEL,…` (Istio `pkg/log`); vm-agent has one level for all scopes.
    fn log_level(&mut self, scopes: &str, fact: &Fact, settings: &mut Settings) {
        for one in scopes.split(',').filter(|one| !one.is_empty()) {
            let (scope, level) = one.split_once(':').unwrap_or(("default", one));
            let ours = match level {
                "none" | "fatal" | "error" => "error",
                "warn" => "warn",
                "info" => "info",
                "debug" => "debug",
                _ => {
                    let what = format!("--log_output_level: found {level:?}, expected a level");
                    self.wrong(&fact.origin, VARIABLE, what);
                    continue;
                }
            };
            if ["default", "all"].contains(&scope) {
                settings.put("log", "level", json!(ours), &fact.origin);
            } else {
                let what = format!(
                    "--log_output_level={scope}:{level}: vm-agent has one level for all scopes; \
                     set log.level"
                );
                self.warn(&fact.origin, VARIABLE, what);
            }
        }
    }
}

const VARIABLE: &str = "ISTIO_AGENT_FLAGS";
/// Flags that put other files in the place of those that are read here.
const REPLACING: [&str; 2] = ["meshConfig", "templateFile"];
