//! A problem of something that a person wrote: where, what was found, what was expected.

use std::fmt;

use super::printable;

/// One thing wrong with a setting. All problems of one run are reported together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `FILE:LINE`, `FILE`, `--flag` or `$VARIABLE`.
    pub origin: String,
    /// The setting's path or key, such as `workload.address`; empty for a whole file.
    pub field: String,
    /// What is wrong, with the value found (a secret's is never shown) and what was expected.
    pub what: String,
}

impl Problem {
    /// A problem of one setting.
    #[must_use]
    pub fn new(
        origin: impl Into<String>,
        field: impl Into<String>,
        what: impl Into<String>,
    ) -> Self {
        Self { origin: origin.into(), field: field.into(), what: what.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", printable::line(&self.origin))?;
        if !self.field.is_empty() {
            write!(f, "{}: ", printable::line(&self.field))?;
        }
        f.write_str(&printable::message(&self.what))
    }
}

/// Problems that make a configuration unusable: never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
