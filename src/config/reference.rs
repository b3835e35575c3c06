//! Every setting: what it takes and its default, as the reader has them, and what it is for. The
//! reference for operators is made of it.

mod meanings;

use std::path::Path;

use serde_json::Value;

use super::document::Document;
use super::environment;
use super::paths::Paths;
use super::reader::Reader;
use super::sections::Settings;
use meanings::MEANINGS;

/// A setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its path, such as `workload.name`.
    pub path: String,
    /// The words for what it takes.
    pub takes: String,
    /// Its default; null, an empty text, list or map is none.
    pub default: Value,
    /// Its variable of the environment.
    pub variable: String,
    /// What it is for.
    pub meaning: &'static str,
    /// What Istio calls it: a variable of `cluster.env`, a field of ProxyConfig or of an object.
    pub istio: &'static str,
}

/// A section of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub meaning: &'static str,
}

/// The sections, in the order of [`reference`].
pub const SECTIONS: [Section; 11] = [
    section("workload", "Who the machine is; most names are those of the WorkloadEntry spec."),
    section("mesh", "The mesh that it joins."),
    section(
        "credential",
        "Tokens for istiod; a certificate that is valid comes before all of them.",
    ),
    section("identity", "Key and certificate."),
    section("registration", "The WorkloadEntry, and the Kubernetes API."),
    section("proxy", "Envoy."),
    section("capture", "Which traffic goes through the proxy."),
    section("dns", "Names of the mesh for applications."),
    section("health", "How the application is checked."),
    section("status", "The status server: readiness and metrics."),
    section("log", "The log."),
];

const fn section(name: &'static str, meaning: &'static str) -> Section {
    Section { name, meaning }
}

/// All settings, section by section. Defaults are those of a machine's own root.
#[must_use]
pub fn reference() -> Vec<Setting> {
    let empty = Document::new();
    let mut reader = Reader::new(&empty);
    drop(Settings::read(&mut reader, &Paths::new(Path::new("/"))));
    let setting = |(path, takes, default): (String, String, Value)| {
        let row = MEANINGS.iter().find(|(setting, ..)| *setting == path);
        let (_, meaning, istio) = row.copied().unwrap_or_default();
        let parts: Vec<String> = path.split('.').map(str::to_owned).collect();
        Setting { takes, default, variable: environment::variable(&parts), meaning, istio, path }
    };
    let mut all: Vec<Setting> = reader.into_defaults().map(setting).collect();
    let place = |one: &Setting| {
        let first = one.path.split('.').next();
        SECTIONS.iter().position(|section| Some(section.name) == first)
    };
    all.sort_by_key(place);
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_setting_has_a_meaning_and_every_meaning_a_setting() {
        let all = reference();
        let read: BTreeSet<&str> = all.iter().map(|setting| &*setting.path).collect();
        let told: BTreeSet<&str> = MEANINGS.iter().map(|(path, ..)| *path).collect();
        assert_eq!(read, told);
        assert_eq!((read.len(), told.len()), (all.len(), MEANINGS.len()), "each is there once");
        for setting in &all {
            let section = setting.path.split('.').next();
            assert!(SECTIONS.iter().any(|one| Some(one.name) == section), "{}", setting.path);
            assert!(!setting.takes.is_empty() && !setting.meaning.ends_with('.'), "{setting:?}");
        }
    }

    #[test]
    fn what_a_setting_takes_and_its_default_are_what_the_reader_reads() {
        let all = reference();
        let of = |path: &str| all.iter().find(|setting| setting.path == path).unwrap();
        assert_eq!(
            (of("identity.ttl").takes.as_str(), &of("identity.ttl").default),
            ("a span of time", &"24h".into())
        );
        assert_eq!(of("dns.port").takes, "a number from 1 to 65535");
        assert_eq!(of("capture.failPolicy").takes, "open or closed");
        assert_eq!(of("capture.mode").default, "auto");
        assert_eq!(of("workload.labels").takes, "a map");
        assert_eq!(of("proxy.binary").takes, "a path");
        assert_eq!(of("workload.serviceAccount").variable, "VM_AGENT_WORKLOAD_SERVICE_ACCOUNT");
    }
}
