//! Settings that are templates, until facts fill them in.

use std::collections::BTreeMap;

use super::workload::{self, Workload};
use crate::base::backoff::Retry;
use crate::base::problem::{Problem, Problems};
use crate::config::names;
use crate::config::reader::Reader;
use crate::platform::{self, Fact, Syntax, Template, TemplateError};
use crate::workload::{Address, Locality};

/// A setting of `workload` that may be a template.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    Address,
    Label(String),
    Locality,
    Name,
    Network,
}

impl Field {
    pub(super) fn path(&self) -> Vec<String> {
        let setting = match self {
            Self::Address => "address",
            Self::Label(_) => "labels",
            Self::Locality => "locality",
            Self::Name => "name",
            Self::Network => "network",
        };
        let mut path = vec!["workload".to_owned(), setting.to_owned()];
        if let Self::Label(key) = self {
            path.push(key.clone());
        }
        path
    }

    fn syntax(&self) -> Syntax {
        match self {
            Self::Address => Syntax::Address,
            Self::Locality => Syntax::Locality,
            Self::Name => Syntax::Name,
            Self::Label(_) | Self::Network => Syntax::Label,
        }
    }
}

/// The templates among the settings of `workload`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates(BTreeMap<Field, Placed>);

/// A template, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    template: Template,
    origin: String,
}

/// Templates that facts do not fill in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problems}")]
pub struct Unfilled {
    /// What is wrong with each.
    pub problems: Problems,
    /// Whether it can pass by itself: facts that are not known now may be known later.
    pub retry: Retry,
}

impl Templates {
    /// The text of a setting, where it is none with facts in it; such a one is kept.
    pub(super) fn literal(&mut self, reader: &mut Reader<'_>, field: Field) -> Option<String> {
        let text = reader.text(&field.path().join("."), "")?;
        self.take(reader, field, text)
    }

    /// As [`Self::literal`], of a text that was read already.
    pub(super) fn take(
        &mut self,
        reader: &mut Reader<'_>,
        field: Field,
        text: String,
    ) -> Option<String> {
        if !Template::is_template(&text) {
            return Some(text);
        }
        let path = field.path();
        match parse(&field, &text) {
            Ok(template) => {
                let origin = reader.origin(&path);
                self.0.insert(field, Placed { template, origin });
            }
            Err(what) => reader.wrong_leaf(&path, what),
        }
        None
    }

    /// Whether a setting is a template.
    pub(super) fn has(&self, field: &Field) -> bool {
        self.0.contains_key(field)
    }

    /// The facts in all templates.
    pub(super) fn facts(&self) -> impl Iterator<Item = &Fact> {
        self.0.values().flat_map(|placed| placed.template.facts())
    }

    /// The facts without which some template cannot be filled in.
    pub(super) fn needs(&self) -> impl Iterator<Item = &Fact> {
        self.0.values().flat_map(|placed| placed.template.needs())
    }
}

/// The address of the machine goes into its name and labels only: it may itself be found out late.
fn parse(field: &Field, text: &str) -> Result<Template, String> {
    let template: Template = text.parse().map_err(|error: TemplateError| match &error {
        TemplateError::Fact(unknown) => {
            let near = names::nearest(&unknown.name, &Fact::NAMES);
            let is_tag = unknown.name.starts_with("cloud.tag");
            match near.or(if is_tag { Some("cloud.tag.KEY") } else { None }) {
                Some(near) => format!("{error}: did you mean {near}?"),
                None => error.to_string(),
            }
        }
        _ => error.to_string(),
    })?;
    let takes_address = matches!(field, Field::Name | Field::Label(_));
    if !takes_address && template.facts().any(|fact| *fact == Fact::Address) {
        return Err("the fact address can be in names and labels only".to_owned());
    }
    Ok(template)
}

/// What fills templates in.
pub(super) struct Filling<'a> {
    pub(super) facts: &'a platform::Facts,
    /// The machine's address, where it is known already.
    pub(super) address: Option<&'a Address>,
    problems: Vec<Problem>,
    wrong: bool,
}

impl<'a> Filling<'a> {
    pub(super) fn new(facts: &'a platform::Facts, address: Option<&'a Address>) -> Self {
        Self { facts, address, problems: Vec::new(), wrong: false }
    }

    /// Fills in all templates but the address's.
    pub(super) fn fill(&mut self, into: &mut Workload) {
        for (field, placed) in std::mem::take(&mut into.templates).0 {
            let Some(text) = self.text(&field, &placed) else { continue };
            let filled = match &field {
                Field::Address => Ok(()),
                Field::Label(key) => workload::label(key, &text)
                    .map(|()| drop(into.labels.insert(key.clone(), text.clone()))),
                Field::Locality => workload::parsed::<Locality>(&text)
                    .map(|locality| into.locality = Some(locality)),
                Field::Name => workload::name(&text).map(|()| into.name = Some(text.clone())),
                Field::Network => workload::network(&text).map(|()| into.network = text.clone()),
            };
            self.note(&field, &placed, &text, filled);
        }
    }

    /// Fills in the address, where that is a template.
    pub(super) fn fill_address(&mut self, from: &Workload) -> Option<Address> {
        let field = Field::Address;
        let placed = from.templates.0.get(&field)?;
        let text = self.text(&field, placed)?;
        let parsed = workload::address(&text, &from.ports);
        let (address, result) = match parsed {
            Ok(address) => (Some(address), Ok(())),
            Err(what) => (None, Err(what)),
        };
        self.note(&field, placed, &text, result);
        address
    }

    /// A problem that no template makes.
    pub(super) fn wrong(&mut self, setting: &str, what: String) {
        self.wrong = true;
        self.problems.push(Problem::new("configuration", setting, what));
    }

    /// # Errors
    /// With all that was wrong.
    pub(super) fn finish(self) -> Result<(), Unfilled> {
        if self.problems.is_empty() {
            return Ok(());
        }
        let retry = if self.wrong { Retry::Never } else { Retry::Soon };
        Err(Unfilled { problems: Problems(self.problems), retry })
    }

    fn text(&mut self, field: &Field, placed: &Placed) -> Option<String> {
        let known = |fact: &Fact| match fact {
            Fact::Address => self.address.map(ToString::to_string),
            fact => self.facts.get(fact).map(str::to_owned),
        };
        match placed.template.fill(field.syntax(), known) {
            Ok(text) => Some(text),
            Err(fact) => {
                let template = placed.template.to_string();
                let what = format!("{template:?} cannot be filled in: {fact} is not known");
                self.problems.push(Problem::new(&*placed.origin, field.path().join("."), what));
                None
            }
        }
    }

    fn note(&mut self, field: &Field, placed: &Placed, text: &str, result: Result<(), String>) {
        if let Err(what) = result {
            self.wrong = true;
            let template = placed.template.to_string();
            let what = format!("{template:?} is now {text:?}: {what}");
            self.problems.push(Problem::new(&*placed.origin, field.path().join("."), what));
        }
    }
}
