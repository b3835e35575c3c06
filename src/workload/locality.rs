//! Where a machine runs: `region[/zone[/subzone]]`.

use std::fmt;
use std::str::FromStr;

/// What is wrong with a locality.
#[derive(Debug, thiserror::Error)]
#[error("{found:?} is no locality: expected REGION[/ZONE[/SUBZONE]] without empty parts")]
pub struct LocalityError {
    /// The text.
    found: String,
}

/// A region, a zone in it, a part of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locality {
    /// Never empty.
    pub region: String,
    /// Empty when unknown.
    pub zone: String,
    /// Empty when unknown.
    pub sub_zone: String,
}

impl FromStr for Locality {
    type Err = LocalityError;

    fn from_str(text: &str) -> Result<Self, LocalityError> {
        let parts: Vec<&str> = text.split('/').collect();
        let wrong = || LocalityError { found: text.chars().take(300).collect() };
        if text.len() > BYTES || parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
            return Err(wrong());
        }
        let part = |index: usize| parts.get(index).copied().unwrap_or_default().to_owned();
        Ok(Self { region: part(0), zone: part(1), sub_zone: part(2) })
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        for part in [&self.zone, &self.sub_zone] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

/// istiod's limit (istio/api `networking/v1alpha3/workload_entry.proto`).
const BYTES: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_parts_make_a_locality() {
        for text in ["eu", "eu/a", "eu/a/rack1"] {
            assert_eq!(text.parse::<Locality>().unwrap().to_string(), text);
        }
        for text in ["", "/", "eu/", "eu//x", "a/b/c/d"] {
            assert!(text.parse::<Locality>().is_err(), "{text}");
        }
    }
}
