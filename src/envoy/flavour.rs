//! Which Envoy a binary is: what it can do is told by the names of extensions that it carries.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use crate::base::fsio::open_regular;

/// Who built it, and what of Istio it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flavour {
    /// The kind of build.
    pub build: Build,
    /// Istio's filters that it knows, in words.
    pub knows: Vec<&'static str>,
    /// Istio's filters that it lacks, in words.
    pub lacks: Vec<&'static str>,
}

/// The kind of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Istio's own, or upstream's with all of Istio's filters.
    Istio,
    /// Upstream's with its contributed extensions.
    Contrib,
    /// Upstream's.
    Plain,
    /// No extension was found: a wrapper, perhaps.
    Unknown,
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Istio => "with Istio's filters",
            Self::Contrib => "contrib",
            Self::Plain => "plain",
            Self::Unknown => "of unknown build",
        })
    }
}

/// Looks for the names of extensions in a binary. It blocks, and reads at most half a gibibyte.
///
/// # Errors
/// When the file cannot be read.
pub fn flavour_of(path: &Path) -> io::Result<Flavour> {
    let needles: Vec<&[u8]> =
        ISTIO.iter().map(|(_, name)| *name).chain([CONTRIB, CORE]).map(str::as_bytes).collect();
    let found = search(open_regular(path).map_err(|error| error.source)?.take(BYTES), &needles)?;
    let has = |at: usize| found.get(at).copied().unwrap_or(false);
    let named = |wanted: bool| {
        let all = ISTIO.iter().enumerate();
        all.filter(|(at, _)| has(*at) == wanted).map(|(_, (words, _))| *words).collect()
    };
    let (knows, lacks): (Vec<_>, Vec<_>) = (named(true), named(false));
    let build = match (lacks.is_empty(), has(ISTIO.len()), has(ISTIO.len().saturating_add(1))) {
        (true, ..) => Build::Istio,
        (_, true, _) => Build::Contrib,
        (_, _, true) => Build::Plain,
        _ => Build::Unknown,
    };
    Ok(Flavour { build, knows, lacks })
}

/// Which of the texts occur.
fn search(mut from: impl Read, needles: &[&[u8]]) -> io::Result<Vec<bool>> {
    let longest = needles.iter().map(|needle| needle.len()).max().unwrap_or(0);
    let mut found = vec![false; needles.len()];
    let mut window: Vec<u8> = Vec::new();
    let mut block = vec![0; BLOCK];
    loop {
        let size = from.read(&mut block)?;
        window.extend_from_slice(block.get(..size).unwrap_or_default());
        for (found, needle) in found.iter_mut().zip(needles) {
            *found = *found || contains(&window, needle);
        }
        if size == 0 || found.iter().all(|found| *found) {
            return Ok(found);
        }
        // A name may lie across two blocks.
        let keep = window.len().saturating_sub(longest);
        window.drain(..keep);
    }
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    let Some((first, _)) = needle.split_first() else { return false };
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = rest.get(at..).unwrap_or_default();
        if rest.starts_with(needle) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

/// The packages of the types that istiod's default configuration names and that are not of Envoy's
/// core (Istio `pilot/pkg/xds/filters/filters.go`). A binary carries the descriptors of its types, in
/// which a package stands apart from the names in it; that of the statistics has a name too short to
/// tell, but the type of one of its fields stands there in full.
const ISTIO: [(&str, &str); 4] = [
    ("peer metadata (HTTP)", "io.istio.http.peer_metadata"),
    ("peer metadata (TCP)", "envoy.tcp.metadataexchange.config"),
    ("ALPN", "istio.envoy.config.filter.http.alpn.v2alpha1"),
    ("statistics", ".stats.MetricConfig"),
];
/// Every build with contributed extensions has it, and no other.
const CONTRIB: &str = "envoy.filters.network.sip_proxy";
/// Every Envoy has it.
const CORE: &str = "envoy.filters.network.http_connection_manager";
/// Four times the largest build.
const BYTES: u64 = 512 << 20;
const BLOCK: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn flavour(text: &[u8]) -> Flavour {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        flavour_of(file.path()).unwrap()
    }

    #[test]
    fn a_build_is_told_by_the_extensions_that_it_carries() {
        let istio = ISTIO.map(|(_, name)| name).join("\0");
        assert_eq!(flavour(istio.as_bytes()).build, Build::Istio);
        let contrib = flavour(format!("{CORE}\0{CONTRIB}\0.stats.MetricConfig").as_bytes());
        assert_eq!((contrib.build, contrib.knows), (Build::Contrib, vec!["statistics"]));
        let plain = flavour(CORE.as_bytes());
        assert_eq!((plain.build, plain.lacks.len()), (Build::Plain, ISTIO.len()));
        assert_eq!(flavour(b"#!/bin/sh").build, Build::Unknown);
    }

    #[test]
    fn a_name_across_two_blocks_is_found() {
        for before in [BLOCK - 7, BLOCK - 1, BLOCK] {
            let mut text = vec![b'e'; before];
            text.extend_from_slice(CORE.as_bytes());
            text.resize(3 * BLOCK, 0);
            assert_eq!(flavour(&text).build, Build::Plain, "{before}");
        }
    }
}
