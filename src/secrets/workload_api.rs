//! Certificates from a SPIFFE Workload API: whatever it pushes is taken at once.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Vault;
use super::follow::{Ending, refusal_hint};
use crate::base::backoff::{Backoff, Retry};
use crate::identity::Refusal;
use crate::spiffe::{Answer, Socket, Updates, WorkloadApiError, choose};

/// Takes certificates from a Workload API until `stop`.
pub async fn follow_workload_api(vault: Vault, socket: Socket, stop: CancellationToken) {
    let follower = Follower { vault, socket, backoff: Backoff::new(FIRST, LONGEST) };
    tokio::select! {
        () = follower.run() => {}
        () = stop.cancelled() => {}
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the certificate of the SPIFFE Workload API was refused")]
struct Refused(#[source] Refusal);

struct Follower {
    vault: Vault,
    socket: Socket,
    backoff: Backoff,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let error = self.stream().await;
            self.vault.fails(&error, error.hint(), error.retry());
            let delay = self.backoff.delay_for(error.retry());
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.vault.asked_to_renew() => {}
            }
        }
    }

    /// One stream, to its end.
    async fn stream(&mut self) -> WorkloadApiError {
        self.vault.looks();
        let mut updates = match Updates::open(&self.socket).await {
            Ok(updates) => updates,
            Err(error) => return error,
        };
        loop {
            let ended = match self.next(&mut updates).await {
                Ok(answer) => self.take(answer, &mut updates).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                return error;
            }
        }
    }

    /// The next push; meanwhile the end of what we have is looked at.
    async fn next(&self, updates: &mut Updates) -> Result<Answer, WorkloadApiError> {
        loop {
            tokio::select! {
                update = updates.next() => return update,
                () = tokio::time::sleep(LOOK) => {
                    self.look_at_the_end();
                    self.vault.store_again().await;
                }
            }
        }
    }

    /// Takes our certificate out of a push. While it is held until it is valid, a newer one may
    /// come. What is wrong with it does not end the stream: the next push may be right.
    async fn take(
        &mut self,
        mut answer: Answer,
        updates: &mut Updates,
    ) -> Result<(), WorkloadApiError> {
        loop {
            let candidate = match choose(answer, &self.vault.config().id) {
                Ok(candidate) => candidate,
                Err(error) => {
                    self.vault.fails(&error, error.hint(), Retry::Later);
                    return Ok(());
                }
            };
            answer = tokio::select! {
                admitted = self.vault.admit(candidate) => {
                    match admitted {
                        Ok(identity) => {
                            self.backoff.reset();
                            self.vault.took(&identity);
                        }
                        Err(refusal) => {
                            let error = Refused(refusal);
                            self.vault.fails(&error, refusal_hint(&error.0), Retry::Later);
                        }
                    }
                    return Ok(());
                }
                newer = updates.next() => newer?,
            };
        }
    }

    fn look_at_the_end(&self) {
        let Some(identity) = self.vault.ending() else { return };
        if self.vault.renewal().borrow().trouble.is_some() {
            return;
        }
        let from = format!("of the SPIFFE Workload API at {}", self.socket);
        let error = Ending { from, end: identity.not_after() };
        let hint = "look at the SPIFFE agent's log".to_owned();
        self.vault.fails(&error, Some(hint), Retry::Later);
    }
}

const FIRST: Duration = Duration::from_millis(200);
/// An agent that is started again is found within seconds.
const LONGEST: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(30);
