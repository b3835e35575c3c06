//! What somebody who helps from afar needs to know, in one tree without secrets.

use serde_json::{Value, json};
use tokio::time::timeout;

use super::order::{Report, SCHEMA};
use super::{LIMIT, Patient};
use crate::agent::outline;
use crate::base::fsio;
use crate::base::printable::sanitize;
use crate::base::redact::{mask, redact, redacted};
use crate::base::trouble::chain;
use crate::envoy::{Page, page};

/// What goes into a bug report beside the doctor's findings.
pub struct Parcel<'a> {
    /// The machine.
    pub patient: &'a Patient,
    /// The doctor's findings.
    pub report: &'a Report,
    /// The end of the log, or why there is none.
    pub log: Result<String, String>,
    /// Envoy's pages.
    pub proxy: Proxied,
}

/// Envoy's own words; each is why there are none where it did not answer.
pub struct Proxied {
    server_info: String,
    stats: String,
    clusters: String,
}

/// Reads Envoy's pages.
pub async fn pages(patient: &Patient) -> Proxied {
    let port = patient.configuration.as_ref().ok();
    let port = port.map(|loaded| outline::admin_port(&loaded.settings));
    let read = |which: Page| async move {
        let Some(port) = port else { return "its port is not known".to_owned() };
        match timeout(LIMIT, page(port, which)).await {
            Ok(Ok(text)) => bounded(&text),
            Ok(Err(error)) => format!("no answer: {}", chain(&error)),
            Err(_) => format!("no answer within {LIMIT:?}"),
        }
    };
    let (server_info, stats, clusters) =
        tokio::join!(read(Page::ServerInfo), read(Page::Stats), read(Page::Clusters));
    Proxied { server_info, stats, clusters }
}

impl Parcel<'_> {
    /// The report as one tree. Settings are masked as `config show` masks them; keys and tokens
    /// are taken out of everything that others wrote.
    #[must_use]
    pub fn tree(&self) -> Value {
        let Self { patient, report, log, proxy } = self;
        let config = match &patient.configuration {
            Ok(loaded) => json!(loaded.effective),
            Err(problems) => json!(problems.to_string()),
        };
        let journal = fsio::read_text(&patient.paths.capture_journal(), JOURNAL_BYTES).ok();
        let journal = journal.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let kernel = fsio::read_text(std::path::Path::new("/proc/version"), LINE_BYTES).ok();
        let release = fsio::read_text(std::path::Path::new("/etc/os-release"), LINE_BYTES).ok();
        let log = log.as_ref().map_or_else(|why| json!(why), |text| lines(text));
        let mut tree = json!({
            "schema": SCHEMA,
            "versions": {
                "vm_agent": env!("CARGO_PKG_VERSION"),
                "kernel": kernel.map(|text| text.trim().to_owned()),
                "os_release": release.map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()),
            },
            "doctor": report,
            "status": patient.daemon.status(),
            "config": config,
            "capture_journal": journal,
            "log": log,
            "envoy": {
                "server_info": lines(&proxy.server_info),
                "stats": lines(&proxy.stats),
                "clusters": lines(&proxy.clusters),
            },
        });
        redact(&mut tree);
        sanitize(&mut tree);
        tree
    }
}

/// Text is easier to read in a tree by its lines; JSON is a tree already. A key lies across lines.
fn lines(text: &str) -> Value {
    let text = &*redacted(text);
    let tree = serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    let masked = tree.map(|mut tree| {
        mask(&mut tree);
        tree
    });
    masked.unwrap_or_else(|| json!(text.lines().collect::<Vec<_>>()))
}

/// A large mesh has megabytes of clusters.
fn bounded(text: &str) -> String {
    if text.len() <= PAGE_BYTES {
        return text.to_owned();
    }
    let start: String = text.chars().take(PAGE_BYTES).collect();
    format!("{start}\n(cut off)")
}

const JOURNAL_BYTES: u64 = 4 << 20;
const LINE_BYTES: u64 = 64 << 10;
const PAGE_BYTES: usize = 256 << 10;
