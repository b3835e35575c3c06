//! What resolvers said, for a short time.

use std::collections::HashMap;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use tokio::time::Instant;

use super::answer::Question;

/// Answers by question.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    name: Name,
    kind: RecordType,
    class: DNSClass,
    dnssec: bool,
    unchecked: bool,
}

#[derive(Debug)]
struct Entry {
    answer: Message,
    since: Instant,
    fresh_for: Duration,
}

/// Whether an answer is still good by what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Fresh,
    /// Better than none (RFC 8767).
    Stale,
}

impl Cache {
    /// What was said to this question, if it is not older than `age` allows.
    pub(super) fn get(&self, question: &Question, age: Age) -> Option<Message> {
        let entry = self.entries.get(&key(question))?;
        let old = entry.since.elapsed();
        match age {
            Age::Fresh if old >= entry.fresh_for => return None,
            Age::Stale if old >= STALE => return None,
            _ => {}
        }
        let mut answer = entry.answer.clone();
        let passed = u32::try_from(old.as_secs()).unwrap_or(u32::MAX);
        let stale = age == Age::Stale && old >= entry.fresh_for;
        for record in answer.answers.iter_mut().chain(&mut answer.authorities) {
            record.ttl = if stale { STALE_TTL } else { record.ttl.saturating_sub(passed) };
        }
        Some(answer)
    }

    /// Keeps an answer for as long as it says, within our own bounds.
    pub(super) fn put(&mut self, question: &Question, answer: &Message) {
        let Some(fresh_for) = fresh_for(answer) else { return };
        if records(answer) > RECORDS {
            return;
        }
        if self.entries.len() >= ENTRIES {
            self.entries.retain(|_, entry| entry.since.elapsed() < entry.fresh_for);
        }
        if self.entries.len() >= ENTRIES {
            self.entries.clear();
        }
        let entry = Entry { answer: answer.clone(), since: Instant::now(), fresh_for };
        self.entries.insert(key(question), entry);
    }
}

/// `None` for what must not be kept.
fn fresh_for(answer: &Message) -> Option<Duration> {
    if answer.metadata.truncation {
        return None;
    }
    let least = answer.answers.iter().map(|record| record.ttl).min();
    let seconds = match (answer.metadata.response_code, least) {
        (ResponseCode::NoError, Some(ttl)) => ttl.min(LONGEST),
        // Nothing is there: for how long that is so stands in the zone's SOA (RFC 2308).
        (ResponseCode::NoError | ResponseCode::NXDomain, _) => {
            let soa = answer.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            soa?.min(LONGEST_NOTHING)
        }
        _ => return None,
    };
    (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
}

fn records(answer: &Message) -> usize {
    answer.answers.len().saturating_add(answer.authorities.len())
}

fn key(question: &Question) -> Key {
    Key {
        name: question.query.name().to_lowercase(),
        kind: question.query.query_type(),
        class: question.query.query_class(),
        dnssec: question.dnssec,
        unchecked: question.metadata.checking_disabled,
    }
}

/// A name that moves is followed within half a minute.
const LONGEST: u32 = 30;
const LONGEST_NOTHING: u32 = 5;
/// How long an old answer is better than none.
const STALE: Duration = Duration::from_secs(3600);
const STALE_TTL: u32 = 30;
/// Together with the next one, what bounds the memory.
const ENTRIES: usize = 1024;
const RECORDS: usize = 32;
