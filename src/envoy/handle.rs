//! The way to a supervised Envoy: what others may want of it.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::ProxyState;

/// What somebody wants of Envoy.
pub(super) enum Wish {
    Drain,
    Undrain,
    Release(oneshot::Sender<()>),
    End(End),
}

/// A wish for the end of the process.
pub(super) struct End {
    pub(super) how: How,
    /// Answered when it is done.
    pub(super) done: oneshot::Sender<()>,
}

/// How the process ends, and what comes afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// At once, and for good.
    Kill,
    /// Drained, and another one is started.
    Restart {
        /// How long others have to hear of it before it drains.
        notice: Duration,
    },
    /// Drained, and for good.
    Stop,
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

    /// Takes it out of traffic until [`Handle::undrain`]: it goes on serving what comes, and asks
    /// whoever is connected to go elsewhere. Another process in its place is taken out, too.
    pub async fn drain(&self) {
        // Nobody takes wishes after the end, when there is nothing left to drain.
        drop(self.wishes.send(Wish::Drain).await);
    }

    /// Takes it back into traffic.
    pub async fn undrain(&self) {
        drop(self.wishes.send(Wish::Undrain).await);
    }

    /// Drains and ends it, and starts another one at once; returns when that has been started. Others
    /// have `notice` to hear of it before.
    pub async fn restart(&self, notice: Duration) {
        self.end(How::Restart { notice }).await;
    }

    /// Drains and ends it; returns when it has ended.
    pub async fn stop(&self) {
        self.end(How::Stop).await;
    }

    /// Ends it without draining, also while it drains; returns when it has ended.
    pub async fn kill(&self) {
        self.end(How::Kill).await;
    }

    /// Lets it go: it runs on unsupervised, with its note, for the next agent to adopt. Returns when
    /// nobody supervises it any more.
    pub async fn release(&self) {
        self.ask(Wish::Release).await;
    }

    async fn end(&self, how: How) {
        self.ask(|done| Wish::End(End { how, done })).await;
    }

    async fn ask(&self, wish: impl FnOnce(oneshot::Sender<()>) -> Wish) {
        let (done, ended) = oneshot::channel();
        if self.wishes.send(wish(done)).await.is_ok() {
            drop(ended.await);
        }
    }
}
