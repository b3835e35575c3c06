//! Which traffic Istio's scripts and its agent would redirect (`tools/packaging/common/istio-start.sh`,
//! `tools/istio-iptables`), as settings. Nothing that changes traffic is ignored in silence.

use serde_json::{Value, json};

use super::translate::Settings;
use super::{Facts, Reader, keys};

impl Reader<'_> {
    /// The variables of Istio's rules, and the interception mode.
    pub(super) fn capture(&mut self, facts: &Facts, settings: &mut Settings) {
        for (variable, section, setting) in keys::CAPTURE {
            let Some(fact) = facts.variables.get(variable) else { continue };
            let value = match fact.value.as_str() {
                "true" => json!(true),
                "false" => json!(false),
                "" => continue,
                text => json!(text),
            };
            settings.put(section, setting, value, &fact.origin);
        }
        for (variable, meant, section, setting, value) in keys::SWITCHES {
            if let Some(fact) = facts.variables.get(variable).filter(|fact| fact.value == meant) {
                let value = if value == "false" { json!(false) } else { json!(value) };
                settings.put(section, setting, value, &fact.origin);
            }
        }
        if facts.has_environment {
            self.nothing_redirected(facts, settings);
        }
        self.interception(facts, settings);
    }

    /// `istio-iptables` takes both from the environment alone, where a missing or empty one means
    /// that nothing is redirected (its flags `-b` and `-i`).
    fn nothing_redirected(&mut self, facts: &Facts, settings: &mut Settings) {
        for (variable, setting, what) in [
            ("ISTIO_INBOUND_PORTS", "inboundPorts", "inbound"),
            ("ISTIO_SERVICE_CIDR", "outboundRanges", "outbound"),
        ] {
            match facts.variables.get(variable) {
                Some(fact) if !fact.value.is_empty() => {}
                Some(fact) => settings.put_empty("capture", setting, &fact.origin),
                None => {
                    let file = self.origin("cluster.env");
                    settings.put_empty("capture", setting, &file);
                    let words = format!(
                        "it is not set: no {what} connection is redirected, as by Istio's script"
                    );
                    self.warn(&file, variable, words);
                }
            }
        }
    }

    /// `NONE`: istiod configures listeners at the services' own ports, and none for redirected
    /// traffic (Istio `pilot/pkg/networking/core/listener_builder.go`).
    fn interception(&mut self, facts: &Facts, settings: &mut Settings) {
        let variable = facts.variables.get(MODE).filter(|fact| !fact.value.is_empty());
        let field = facts.proxy_config.get("interceptionMode").and_then(Value::as_str);
        let place = facts.places.get(&["interceptionMode".to_owned()][..]).cloned();
        let (mode, origin, name) = match (variable, field) {
            (Some(fact), _) => (fact.value.as_str(), fact.origin.clone(), MODE),
            (None, Some(mode)) => {
                (mode, place.unwrap_or_else(|| self.origin("mesh.yaml")), "interceptionMode")
            }
            (None, None) => return,
        };
        match mode {
            "REDIRECT" => {}
            "TPROXY" => {
                let rules = "ISTIO_INBOUND_INTERCEPTION_MODE";
                if facts.variables.get(rules).is_none_or(|fact| fact.value.is_empty()) {
                    settings.put("capture", "interception", json!("tproxy"), &origin);
                }
            }
            "NONE" => {
                settings.put("capture", "mode", json!("none"), &origin);
                settings.put_metadata("INTERCEPTION_MODE", "NONE", &origin);
                if !facts.variables.contains_key("ISTIO_META_UNPRIVILEGED_POD") {
                    // Envoy has no right to ports below 1024, and istiod leaves such listeners out.
                    settings.put_metadata("UNPRIVILEGED_POD", "true", &origin);
                }
                let words = "NONE: no traffic is redirected, as istiod configures no listener for it; \
                             Envoy listens at the ports of services, from 1024 on";
                self.warn(&origin, name, words);
            }
            other => {
                let what = format!("found {other:?}, expected REDIRECT, TPROXY or NONE");
                self.wrong(&origin, name, what);
            }
        }
    }

    /// What a ProxyConfig asks of Envoy's bootstrap that ours does not have.
    pub(super) fn unsupported(&mut self, facts: &Facts) {
        for (field, instead) in keys::UNSUPPORTED {
            let value = facts.proxy_config.get(field);
            if value.is_none_or(|value| value.is_null() || *value == json!({})) {
                continue;
            }
            let place = facts.places.get(&[field.to_owned()][..]);
            let origin = place.cloned().unwrap_or_else(|| self.origin("mesh.yaml"));
            self.warn(&origin, field, format!("vm-agent does not do this; {instead}"));
        }
    }
}

const MODE: &str = "ISTIO_META_INTERCEPTION_MODE";
