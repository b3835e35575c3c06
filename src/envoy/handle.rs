//! The way to a supervised Envoy: what others may want of it.

use tokio::sync::{mpsc, oneshot, watch};

use super::ProxyState;

/// What somebody wants of Envoy.
pub(super) enum Wish {
    Drain,
    Stop(oneshot::Sender<()>),
    Kill(oneshot::Sender<()>),
    Release(oneshot::Sender<()>),
}

/// The way to a supervised Envoy. Clones share it.
#[derive(Clone, Debug)]
pub struct Handle {
    wishes: mpsc::Sender<Wish>,
    state: watch::Receiver<ProxyState>,
}

impl Handle {
    pub(super) fn new(wishes: mpsc::Sender<Wish>, state: watch::Receiver<ProxyState>) -> Self {
        Self { wishes, state }
    }

    /// Envoy, whenever it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ProxyState> {
        self.state.clone()
    }

    /// Takes it out of traffic; it goes on serving what it has.
    pub async fn drain(&self) {
        // Nobody takes wishes after the end, when there is nothing left to drain.
        drop(self.wishes.send(Wish::Drain).await);
    }

    /// Drains and ends it; returns when it has ended.
    pub async fn stop(&self) {
        self.finish(Wish::Stop).await;
    }

    /// Ends it without draining; returns when it has ended.
    pub async fn kill(&self) {
        self.finish(Wish::Kill).await;
    }

    /// Lets it go: it runs on unsupervised, with its note, for the next agent to adopt. Returns when
    /// nobody supervises it any more.
    pub async fn release(&self) {
        self.finish(Wish::Release).await;
    }

    async fn finish(&self, wish: impl FnOnce(oneshot::Sender<()>) -> Wish) {
        let (done, ended) = oneshot::channel();
        if self.wishes.send(wish(done)).await.is_ok() {
            drop(ended.await);
        }
    }
}
