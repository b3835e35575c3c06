//! Texts with facts in them: `vm-{{hostname}}`, `{{cloud.zone | default "none"}}`.

use std::fmt;
use std::str::FromStr;

use super::fact::{Fact, UnknownFact};

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Braces do not match.
    #[error("{found:?} has a {{{{ or a }}}} without the other")]
    Braces {
        /// The template.
        found: String,
    },
    /// It names a fact that does not exist.
    #[error(transparent)]
    Fact(#[from] UnknownFact),
    /// It changes a fact in a way that does not exist.
    #[error("{found:?} is neither lower nor default \"TEXT\"")]
    Filter {
        /// The words after the `|`.
        found: String,
    },
    /// It is too long, or has too many facts.
    #[error("it is too long: expected at most {BYTES} bytes with {PARTS} facts")]
    Size,
}

/// A text with facts in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Fact { fact: Fact, filters: Vec<Filter> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Default(String),
    Lower,
}

/// What the whole is to be: a fact's letters that it may not have become dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// An address: facts are put in as they are.
    Address,
    /// The value or the name of a label.
    Label,
    /// Parts with slashes between them.
    Locality,
    /// The name of an object, in lower case.
    Name,
}

impl Template {
    /// Whether a text is a template. No setting with templates may have braces otherwise.
    #[must_use]
    pub fn is_template(text: &str) -> bool {
        text.contains("{{") || text.contains("}}")
    }

    /// The facts in it.
    pub fn facts(&self) -> impl Iterator<Item = &Fact> {
        self.parts.iter().filter_map(|part| match part {
            Part::Fact { fact, .. } => Some(fact),
            Part::Text(_) => None,
        })
    }

    /// The facts in it for which it has no other text.
    pub fn needs(&self) -> impl Iterator<Item = &Fact> {
        let has_default =
            |filters: &[Filter]| filters.iter().any(|filter| matches!(filter, Filter::Default(_)));
        self.parts.iter().filter_map(move |part| match part {
            Part::Fact { fact, filters } if !has_default(filters) => Some(fact),
            _ => None,
        })
    }

    /// The text with its facts.
    ///
    /// # Errors
    /// With the first fact that is not known, or of which nothing is left in this syntax.
    pub fn fill(
        &self,
        syntax: Syntax,
        known: impl Fn(&Fact) -> Option<String>,
    ) -> Result<String, Fact> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Fact { fact, filters } => {
                    let mut value = known(fact).and_then(|value| syntax.fit(&value));
                    for filter in filters {
                        value = match filter {
                            Filter::Default(other) => value.or_else(|| Some(other.clone())),
                            Filter::Lower => value.map(|value| value.to_lowercase()),
                        };
                    }
                    text.push_str(&value.ok_or_else(|| fact.clone())?);
                }
            }
        }
        Ok(text)
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let braces = || TemplateError::Braces { found: text.chars().take(SHOWN).collect() };
        if text.len() > BYTES {
            return Err(TemplateError::Size);
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (inside, after) = after.split_once("}}").ok_or_else(braces)?;
            if before.contains("}}") || inside.contains("{{") {
                return Err(braces());
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(placeholder(inside)?);
            rest = after;
        }
        if rest.contains("}}") {
            return Err(braces());
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        if parts.len() > PARTS.saturating_mul(2) {
            return Err(TemplateError::Size);
        }
        Ok(Self { text: text.to_owned(), parts })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn placeholder(inside: &str) -> Result<Part, TemplateError> {
    let mut words = inside.split('|');
    let fact = words.next().unwrap_or_default().trim().parse()?;
    let filters = words.map(filter).collect::<Result<Vec<_>, _>>()?;
    Ok(Part::Fact { fact, filters })
}

fn filter(words: &str) -> Result<Filter, TemplateError> {
    let words = words.trim();
    if words == "lower" {
        return Ok(Filter::Lower);
    }
    let quoted = words.strip_prefix("default").map(str::trim_start);
    let text = quoted.and_then(|text| text.strip_prefix('"')?.strip_suffix('"'));
    match text.filter(|text| !text.contains('"')) {
        Some(text) => Ok(Filter::Default(text.to_owned())),
        None => Err(TemplateError::Filter { found: words.chars().take(SHOWN).collect() }),
    }
}

impl Syntax {
    /// A fact as it may stand in such a text; `None` when nothing is left of it.
    #[must_use]
    pub fn fit(self, value: &str) -> Option<String> {
        let fitting = match self {
            Self::Address => value.to_owned(),
            Self::Locality => value.replace('/', "-"),
            Self::Label => {
                let text = dashed(value, |c| c.is_ascii_alphanumeric() || "-_.".contains(c));
                let text: String = text.chars().take(LABEL).collect();
                text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
            }
            Self::Name => {
                let value = value.to_ascii_lowercase();
                let text = dashed(&value, |c| c.is_ascii_alphanumeric() || "-.".contains(c));
                // Each part between dots begins and ends with a letter or digit.
                let parts = text.split('.').map(|part| part.trim_matches('-'));
                parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
            }
        };
        (!fitting.is_empty()).then_some(fitting)
    }
}

/// The text with one dash for each run of other letters.
fn dashed(text: &str, fits: impl Fn(char) -> bool) -> String {
    let mut fitting = String::new();
    for letter in text.chars() {
        if fits(letter) {
            fitting.push(letter);
        } else if !fitting.ends_with('-') {
            fitting.push('-');
        }
    }
    fitting
}

/// The longest text of any setting with templates is a locality's.
const BYTES: usize = 2048;
/// Nobody needs more.
const PARTS: usize = 32;
/// A label's value (Kubernetes).
const LABEL: usize = 63;
/// As much of a wrong text as a message shows.
const SHOWN: usize = 100;
