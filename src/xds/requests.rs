//! Envoy's side of one stream: its requests, and those that may have to be sent again.

use std::collections::VecDeque;

use bytes::Bytes;
use tonic::Status;
use tonic::body::Body;

use super::frames::Incoming;
use super::progress::Progress;

/// Envoy's requests. Those sent before istiod's first response are kept, to be sent again.
pub(super) struct Requests {
    incoming: Incoming,
    pub(super) opening: VecDeque<Bytes>,
    opening_size: usize,
    /// False once istiod has responded, or when the opening was too large to be kept.
    keeps: bool,
}

impl Requests {
    pub(super) fn new(body: Body) -> Self {
        let incoming = Incoming::new(body, REQUEST_LIMIT);
        Self { incoming, opening: VecDeque::new(), opening_size: 0, keeps: true }
    }

    /// Whether another try would see all of Envoy's requests.
    pub(super) fn can_repeat(&self) -> bool {
        self.keeps
    }

    /// The next request from Envoy; nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self, progress: &Progress) -> Result<Option<Bytes>, Status> {
        let message = self.incoming.next().await?;
        if let Some(message) = message.as_ref().filter(|_| self.keeps) {
            self.opening_size = self.opening_size.saturating_add(message.len());
            self.opening.push_back(message.clone());
            if progress.is_answered()
                || self.opening_size > OPENING_SIZE
                || self.opening.len() > OPENING_COUNT
            {
                self.keeps = false;
                self.opening = VecDeque::new();
            }
        }
        Ok(message)
    }
}

/// The largest request of Envoy, which may list all resources it knows.
const REQUEST_LIMIT: usize = 16 << 20;
/// Bytes of requests that are kept until istiod's first response.
const OPENING_SIZE: usize = 16 << 20;
/// Number of requests that are kept until istiod's first response; Envoy sends one per type.
const OPENING_COUNT: usize = 1024;
