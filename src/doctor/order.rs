//! The findings in a row, in which the first failure is the root of those behind it.

use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::finding::{Finding, Id, State};
use crate::base::clock::rfc3339;

/// The version of the JSON form; it grows when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// All findings.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The version of this program.
    pub version: &'static str,
    /// When, RFC 3339, by this machine's clock.
    pub at: String,
    /// Below which root directory.
    pub root: String,
    /// The worst state of all; `ok` where only some were skipped.
    pub state: State,
    /// The check to look at first: the first failure, or else the first warning.
    pub first: Option<Id>,
    /// One finding for each check, in order.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The finding to look at first.
    #[must_use]
    pub fn first(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| Some(finding.id) == self.first)
    }
}

/// Puts the findings in order, and skips those that a failure before them explains.
pub(super) fn settle(all: Vec<Finding>, now: SystemTime, root: &Path) -> Report {
    let mut findings: Vec<Finding> = Vec::new();
    for id in Id::ALL {
        // Two of one check: the worse one counts, of equal ones the later, which says more; it has
        // the evidence of both.
        let found = all.iter().filter(|finding| finding.id == id).cloned().reduce(worse);
        let root = id.needs().iter().copied().find(|need| is_broken(&findings, *need));
        findings.push(match (found, root) {
            (Some(found), Some(root)) if explains(&found) => {
                let line = found.cause.clone();
                Finding { evidence: vec![line], ..Finding::behind(id, root) }
            }
            (Some(found), _) => found,
            (None, Some(root)) => Finding::behind(id, root),
            (None, None) => Finding::skipped(id, "there is nothing to look at"),
        });
    }
    let at = |state| findings.iter().find(|finding: &&Finding| finding.state == state);
    let first = at(State::Failed).or_else(|| at(State::Warning));
    let state = first.map_or(State::Ok, |finding| finding.state);
    let first = first.map(|finding| finding.id);
    Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        at: rfc3339(now),
        root: root.display().to_string(),
        state,
        first,
        findings,
    }
}

/// What is wrong may be the consequence of a failure before it; what is well is no consequence.
fn explains(finding: &Finding) -> bool {
    matches!(finding.state, State::Failed | State::Warning)
}

/// It failed, or was skipped for something that did.
fn is_broken(findings: &[Finding], id: Id) -> bool {
    let found = findings.iter().find(|finding| finding.id == id);
    found.is_some_and(|finding| finding.state == State::Failed || finding.needs.is_some())
}

fn worse(one: Finding, other: Finding) -> Finding {
    let rank = |finding: &Finding| match finding.state {
        State::Skipped => 0,
        State::Ok => 1,
        State::Warning => 2,
        State::Failed => 3,
    };
    let (mut worse, better) = if rank(&other) >= rank(&one) { (other, one) } else { (one, other) };
    if explains(&better) {
        worse.evidence.push(better.cause);
    }
    worse.evidence.extend(better.evidence);
    worse
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(all: Vec<Finding>) -> Report {
        settle(all, SystemTime::UNIX_EPOCH, Path::new("/"))
    }

    fn state(report: &Report, id: Id) -> (State, Option<Id>) {
        let found = report.findings.iter().find(|finding| finding.id == id).unwrap();
        (found.state, found.needs)
    }

    #[test]
    fn the_list_is_in_the_order_of_the_checks_and_no_check_needs_a_later_one() {
        assert!(Id::ALL.is_sorted());
        for id in Id::ALL {
            assert!(id.needs().iter().all(|need| *need < id), "{id:?}");
            assert_eq!(serde_json::to_value(id).unwrap(), id.name());
        }
    }

    #[test]
    fn what_a_failure_explains_is_skipped_and_keeps_its_words() {
        let report = settled(vec![
            Finding::failed(Id::Ready, "phase starting"),
            Finding::failed(Id::Tcp, "refused"),
            Finding::failed(Id::Certificate, "no answer"),
            Finding::ok(Id::Disk, "fine"),
        ]);
        assert_eq!((report.state, report.first), (State::Failed, Some(Id::Tcp)));
        assert_eq!(state(&report, Id::Certificate), (State::Skipped, Some(Id::Tcp)));
        assert_eq!(state(&report, Id::Ready), (State::Skipped, Some(Id::Certificate)));
        assert_eq!(state(&report, Id::Disk), (State::Ok, None));
        let skipped = report.findings.iter().find(|finding| finding.id == Id::Certificate);
        assert_eq!(skipped.unwrap().evidence, ["no answer"]);
        assert_eq!(report.findings.len(), Id::ALL.len());
    }

    #[test]
    fn a_warning_explains_nothing_and_comes_first_only_without_a_failure() {
        let warned = Finding::warning(Id::Identity, "corrupt");
        let alone = settled(vec![warned.clone()]);
        assert_eq!((alone.state, alone.first), (State::Warning, Some(Id::Identity)));
        let report = settled(vec![warned, Finding::failed(Id::Token, "expired")]);
        assert_eq!(report.first().unwrap().cause, "expired");
        assert_eq!(settled(Vec::new()).state, State::Ok);
    }

    #[test]
    fn of_two_findings_of_one_check_the_worse_counts_with_the_evidence_of_both() {
        let one = Finding::warning(Id::Capture, "removed").evidence("a");
        let report = settled(vec![one, Finding::failed(Id::Capture, "broken").evidence("b")]);
        let found = report.first().unwrap();
        assert_eq!(found.cause, "broken");
        assert_eq!(found.evidence, ["b", "removed", "a"]);
    }
}
