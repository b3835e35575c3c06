//! `workload.facts`: what is asked about this machine, and how long a start waits for it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::reader::Reader;
use crate::platform::{
    self, Fact, INSTANCE_DATA, METADATA_ADDRESS, Provider, Source, Syntax, TAGS,
};
use crate::workload::label_problem;

/// Facts about this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Who is asked for what.
    pub platform: platform::Config,
    /// How long a start waits for a cloud that has not told anything yet.
    pub budget: Duration,
    /// The tags that become labels, by the label's name.
    pub labels: Vec<(String, String)>,
}

impl Facts {
    pub(in crate::config) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let sources = [
            ("auto", Source::Auto),
            ("none", Source::None),
            ("aws", Source::Metadata(Provider::Aws)),
            ("gcp", Source::Metadata(Provider::Gcp)),
            ("azure", Source::Metadata(Provider::Azure)),
            ("cloud-init", Source::CloudInit),
        ];
        let source = reader.choice("workload.facts.source", "auto", &sources);
        let budget = reader.duration_or_zero("workload.facts.budget", "1s");
        if budget.is_some_and(|budget| budget > LONGEST_BUDGET) {
            let what = format!("it is too long: expected at most {LONGEST_BUDGET:?}");
            reader.wrong("workload.facts.budget", what);
        }
        let address = address(reader);
        let instance_data = reader.path("workload.facts.instanceData", INSTANCE_DATA);
        let labels = labels(reader);
        let tags = labels.iter().map(|(_, tag)| tag.clone()).collect();
        let platform = platform::Config {
            source: source?,
            address: address?,
            instance_data: instance_data?,
            tags,
            other_tags: false,
        };
        Some(Self { platform, budget: budget?, labels })
    }

    /// Tags that templates name are asked for, too.
    pub(super) fn with_tags<'a>(mut self, facts: impl Iterator<Item = &'a Fact>) -> Self {
        self.platform.tags.extend(facts.filter_map(|fact| match fact {
            Fact::Tag(key) => Some(key.clone()),
            _ => None,
        }));
        self
    }
}

/// An IP address, with or without a port.
fn address(reader: &mut Reader<'_>) -> Option<SocketAddr> {
    let setting = "workload.facts.address";
    let text = reader.text(setting, &METADATA_ADDRESS.to_string())?;
    let with_port = |ip| SocketAddr::new(ip, METADATA_ADDRESS.port());
    let address = text.parse::<SocketAddr>().ok();
    let address = address.or_else(|| text.parse::<IpAddr>().ok().map(with_port));
    if address.is_none() {
        reader.wrong(setting, format!("found {text:?}, expected IP:PORT"));
    }
    address
}

/// Tags have more letters than names of labels.
fn labels(reader: &mut Reader<'_>) -> Vec<(String, String)> {
    let setting = "workload.facts.tags";
    let mut labels = Vec::new();
    let tags: BTreeSet<String> = reader.list(setting, "").into_iter().collect();
    if tags.len() > TAGS {
        reader.wrong(setting, format!("more than {TAGS} tags"));
    }
    for tag in tags {
        match Syntax::Label.fit(&tag).filter(|key| label_problem(key, "").is_none()) {
            Some(key) => labels.push((key, tag)),
            None => reader.wrong(setting, format!("{tag:?} cannot be made the name of a label")),
        }
    }
    labels
}

/// Whoever wants to wait longer wants the machine not to start.
const LONGEST_BUDGET: Duration = Duration::from_secs(60);
