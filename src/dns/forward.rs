//! Asks the host's resolvers, one after the other, and remembers what they said.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hickory_proto::op::{Message, ResponseCode};
use tokio::time::timeout;

use super::FORWARD_LIMIT;
use super::answer::{Question, Reply, Transport, encoded, failed, response};
use super::cache::{Age, Cache};
use super::exchange::ask;
use super::resolvers::Resolvers;
use super::state::Ledger;

/// The way to the host's resolvers.
#[derive(Debug)]
pub(super) struct Forwarder {
    resolvers: Mutex<Resolvers>,
    cache: Mutex<Cache>,
    ledger: Arc<Ledger>,
}

impl Forwarder {
    pub(super) fn new(resolvers: Resolvers, ledger: Arc<Ledger>) -> Self {
        ledger.resolvers(resolvers.servers(), resolvers.problem());
        Self { resolvers: Mutex::new(resolvers), cache: Mutex::default(), ledger }
    }

    /// The search domains now.
    pub(super) fn with_search<T>(&self, look: impl FnOnce(&[String]) -> T) -> T {
        let mut resolvers = locked(&self.resolvers);
        if resolvers.refresh() {
            self.ledger.resolvers(resolvers.servers(), resolvers.problem());
        }
        look(resolvers.search())
    }

    /// What was said to this question a moment ago.
    pub(super) fn remembered(&self, question: &Question) -> Option<Vec<u8>> {
        let answer = locked(&self.cache).get(question, Age::Fresh)?;
        self.ledger.counters.cached.fetch_add(1, Relaxed);
        bytes(answer, question)
    }

    /// An answer from somebody, or the words that there is none.
    pub(super) async fn resolve(&self, question: &Question, came_by: Transport) -> Vec<u8> {
        self.ledger.counters.forwarded.fetch_add(1, Relaxed);
        let generation = locked(&self.resolvers).generation();
        let answer = timeout(FORWARD_LIMIT, self.ask_each(question, came_by)).await;
        match answer.ok().flatten() {
            Some(answer) => {
                self.ledger.resolvers_answer();
                locked(&self.cache).put(question, &answer);
                bytes(answer, question)
            }
            None => {
                self.ledger.counters.failures.fetch_add(1, Relaxed);
                // The silence of those that are no resolvers any more means nothing.
                if locked(&self.resolvers).generation() == generation {
                    self.ledger.resolvers_are_silent();
                }
                let stale = locked(&self.cache).get(question, Age::Stale);
                stale.and_then(|answer| bytes(answer, question))
            }
        }
        .unwrap_or_else(|| failed(question, ResponseCode::ServFail))
    }

    /// The first that knows. One that cannot say is believed only when nobody else can.
    async fn ask_each(&self, question: &Question, came_by: Transport) -> Option<Message> {
        let order = locked(&self.resolvers).order();
        let mut unsure = None;
        for server in order {
            match ask(server, question, came_by).await {
                Ok(answer) => {
                    locked(&self.resolvers).answered(server);
                    match answer.metadata.response_code {
                        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp => {
                            unsure.get_or_insert(answer);
                        }
                        _ => return Some(answer),
                    }
                }
                Err(error) => {
                    tracing::debug!(%server, %error, "A resolver does not answer.");
                    locked(&self.resolvers).was_silent(server);
                }
            }
        }
        unsure
    }
}

/// Somebody's answer as our own: to the question as it was asked, as large as it may be.
fn bytes(mut theirs: Message, question: &Question) -> Option<Vec<u8>> {
    let mut answer = response(question, theirs.metadata.response_code);
    answer.metadata.authentic_data = theirs.metadata.authentic_data;
    answer.metadata.recursion_available = theirs.metadata.recursion_available;
    answer.answers = std::mem::take(&mut theirs.answers);
    answer.authorities = std::mem::take(&mut theirs.authorities);
    answer.additionals = std::mem::take(&mut theirs.additionals);
    match encoded(answer, question) {
        Reply::Answer(bytes) => Some(bytes),
        _ => None,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
