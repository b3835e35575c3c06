//! Asks the host's resolvers, one after the other, and remembers what they said.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::FORWARD_LIMIT;
use super::answer::{Question, Reply, Transport, encoded, failed, response};
use super::cache::{Age, Cache};
use super::exchange::ask;
use super::probe::probe;
use super::resolvers::Resolvers;
use super::state::Ledger;

/// The way to the host's resolvers.
#[derive(Debug)]
pub(super) struct Forwarder {
    resolvers: Mutex<Resolvers>,
    cache: Mutex<Cache>,
    /// A resolver left a query unanswered.
    suspicion: Notify,
    ledger: Arc<Ledger>,
}

impl Forwarder {
    pub(super) fn new(resolvers: Resolvers, ledger: Arc<Ledger>) -> Self {
        ledger.resolvers(resolvers.servers(), resolvers.problem());
        Self {
            resolvers: Mutex::new(resolvers),
            cache: Mutex::default(),
            suspicion: Notify::new(),
            ledger,
        }
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
        let answer = timeout(FORWARD_LIMIT, self.ask_each(question, came_by)).await;
        match answer.ok().flatten() {
            Some(answer) => {
                self.ledger.resolvers_answer();
                locked(&self.cache).put(question, &answer);
                bytes(answer, question)
            }
            None => {
                self.ledger.counters.failures.fetch_add(1, Relaxed);
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
                    locked(&self.resolvers).suspect(server);
                    self.suspicion.notify_one();
                }
            }
        }
        unsure
    }
}

impl Forwarder {
    /// Probes resolvers that left a query unanswered, and silent ones until they answer again. Only
    /// what they do with our own question says that they are silent: anybody can ask for a name that
    /// nobody answers for.
    pub(super) async fn probe_resolvers(&self) {
        loop {
            let again = locked(&self.resolvers).has_silent();
            tokio::select! {
                () = self.suspicion.notified() => {}
                () = sleep(AGAIN), if again => {}
            }
            self.probe_once().await;
            sleep(PAUSE).await;
        }
    }

    async fn probe_once(&self) {
        let (servers, generation, since) = {
            let mut resolvers = locked(&self.resolvers);
            (resolvers.take_due(), resolvers.generation(), Instant::now())
        };
        let heard = futures_util::future::join_all(
            servers.iter().map(|server| async move { (*server, answers(*server).await) }),
        );
        let heard = heard.await;
        let mut resolvers = locked(&self.resolvers);
        // The silence of those that are no resolvers any more means nothing.
        if resolvers.generation() != generation {
            return;
        }
        for (server, answers) in heard {
            if answers { resolvers.answered(server) } else { resolvers.was_silent(server, since) }
        }
        if resolvers.all_are_silent() {
            self.ledger.resolvers_are_silent();
        } else {
            self.ledger.resolvers_answer();
        }
    }
}

/// Whether it answers for the root zone, which every resolver knows something about: any answer counts.
async fn answers(server: std::net::SocketAddr) -> bool {
    for _ in 0..TRIES {
        if probe(server, ".").await.is_ok() {
            return true;
        }
    }
    false
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

/// A single datagram may be lost.
const TRIES: usize = 2;
/// How often a silent resolver is probed, and the least time between two probes.
const AGAIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);
