//! `vm-agent config reference`: every setting with its meaning, as `docs/configuration.md` has it.

use serde_json::Value;

use super::options::Overrides;
use crate::config::{SECTIONS, Setting, reference};

/// The page, in Markdown.
pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    let all = reference();
    let flags = Overrides::flags();
    for section in SECTIONS {
        page.push_str(&format!("\n## `{}`\n\n{}\n\n{TABLE}", section.name, section.meaning));
        let of = |setting: &&Setting| setting.path.split('.').next() == Some(section.name);
        for setting in all.iter().filter(of) {
            let flag = flags.iter().find(|(path, _)| *path == setting.path).map(|(_, flag)| *flag);
            page.push_str(&row(setting, flag));
        }
    }
    page
}

fn row(setting: &Setting, flag: Option<&str>) -> String {
    let Setting { path, takes, variable, meaning, istio, .. } = setting;
    let default = match &setting.default {
        Value::Null => String::new(),
        Value::String(text) if text.is_empty() => String::new(),
        Value::Array(list) if list.is_empty() => String::new(),
        Value::Object(map) if map.is_empty() => String::new(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    };
    let flag = flag.map(|flag| format!("`{flag}`, ")).unwrap_or_default();
    // The rest of the words is for a complaint.
    let takes = takes.split([',', '(']).next().filter(|_| takes.starts_with("a ")).unwrap_or(takes);
    let takes = takes.trim_start_matches("a ").trim();
    // A bar would end the cell.
    let meaning = meaning.replace('|', "\\|");
    format!("| `{path}` | {takes} | {default} | {meaning} | {istio} | {flag}`{variable}` |\n")
}

const HEAD: &str = "\
# Configuration reference

Made by `make gen` from the code; `vm-agent config reference` prints it.

`/etc/vm-agent/config.yaml` is YAML: `workload.name` is `name` in the map `workload`. `vm-agent join` writes it from a bundle or from the directory
of `istioctl x workload entry configure`; edit it afterwards, `vm-agent config check` tells every problem, and `vm-agent reload` has the agent read it.
`--set PATH=VALUE` of `join` and `run` sets any setting and wins over the environment, which wins over the file; values of both are YAML.
`vm-agent config show` tells what counts, and from where.

A setting that says \"below\" a directory may be an absolute path as well. Spans of time are a number with a unit: `500ms`, `60s`, `1h30m`, `24h`. A list may be a
text with commas. A text that looks like something else needs quotes: `version: \"1.10\"`. What a template is: [facts.md](facts.md). Where no default is given, there is none, or the meaning says what happens without.
\"Istio\" is what Istio calls it: variables of `cluster.env`, fields of ProxyConfig (`mesh.yaml`) or of the WorkloadEntry (`spec`).
";
const TABLE: &str = "\
| setting | takes | default | meaning | Istio | flag, variable |
| --- | --- | --- | --- | --- | --- |
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_fresh() {
        let kept = include_str!("../../docs/configuration.md");
        assert!(kept == page(), "docs/configuration.md is old: run `make gen`");
    }

    #[test]
    fn every_flag_for_a_setting_is_shown_with_it() {
        let page = page();
        for (path, flag) in Overrides::flags() {
            let line = page.lines().find(|line| line.starts_with(&format!("| `{path}` |")));
            assert!(line.is_some_and(|line| line.contains(&format!("`{flag}`"))), "{flag}");
        }
    }
}
