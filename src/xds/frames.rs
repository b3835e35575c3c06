//! gRPC messages in HTTP/2 bodies, taken and given without copies where they come in one piece. It
//! keeps no buffer between messages, so that one large message does not cost memory for ever.
//!
//! The framing is that of gRPC over HTTP/2: one byte of flags, four bytes of length, the message.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use tonic::body::Body;

/// Messages that arrive.
pub(super) struct Incoming {
    body: Body,
    limit: usize,
    /// What has arrived and is not yet part of a message.
    chunk: Bytes,
    part: Part,
    trailers: Option<HeaderMap>,
}

/// The message that is being put together.
enum Part {
    Header(BytesMut),
    Message { length: usize, received: BytesMut },
}

impl Incoming {
    /// Reads the messages of a body, none of them larger than `limit` bytes.
    pub(super) fn new(body: Body, limit: usize) -> Self {
        Self { body, limit, chunk: Bytes::new(), part: Part::header(), trailers: None }
    }

    /// The next message; `None` at the proper end of the stream. Nothing is lost when the future
    /// is dropped.
    ///
    /// # Errors
    /// When the connection breaks, or the peer breaks the protocol or exceeds the limit.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.assemble()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await.transpose()? else {
                return self.end();
            };
            match frame.into_data() {
                Ok(data) => self.chunk = data,
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }

    /// The status in the trailers after the end, where there were any.
    pub(super) fn status(&self) -> Option<Status> {
        self.trailers.as_ref().and_then(Status::from_header_map)
    }

    fn end(&self) -> Result<Option<Bytes>, Status> {
        if matches!(&self.part, Part::Header(received) if received.is_empty()) {
            Ok(None)
        } else {
            Err(Status::internal("the stream ended within a message"))
        }
    }

    /// Moves bytes from the chunk into the message; `None` when more have to arrive.
    fn assemble(&mut self) -> Result<Option<Bytes>, Status> {
        if let Part::Header(received) = &mut self.part {
            let missing = HEADER - received.len();
            received.put(self.chunk.split_to(missing.min(self.chunk.len())));
            if received.len() < HEADER {
                return Ok(None);
            }
            let length = length_of(received, self.limit)?;
            if self.chunk.len() >= length {
                self.part = Part::header();
                return Ok(Some(self.chunk.split_to(length)));
            }
            // Untouched memory costs nothing until it is written, so a claim alone is free.
            self.part = Part::Message { length, received: BytesMut::with_capacity(length) };
        }
        let Part::Message { length, received } = &mut self.part else { return Ok(None) };
        let missing = *length - received.len();
        received.put(self.chunk.split_to(missing.min(self.chunk.len())));
        if received.len() < *length {
            return Ok(None);
        }
        let message = received.split().freeze();
        self.part = Part::header();
        Ok(Some(message))
    }
}

impl Part {
    fn header() -> Self {
        Self::Header(BytesMut::new())
    }
}

/// The length that a complete header announces.
fn length_of(header: &[u8], limit: usize) -> Result<usize, Status> {
    let &[flags, a, b, c, d] = header else { return Err(Status::internal("no gRPC header")) };
    if flags != 0 {
        return Err(Status::internal("a compressed message, which was not negotiated"));
    }
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > limit {
        let why = format!("a message of {length} bytes; the limit is {limit}");
        return Err(Status::resource_exhausted(why));
    }
    Ok(length)
}

/// Messages that leave: the body of a request or a response.
pub(super) struct Outgoing {
    messages: mpsc::Receiver<Bytes>,
    /// The status that ends a response; a request has none.
    end: Option<oneshot::Receiver<Status>>,
    /// The message whose header has gone ahead.
    ready: Option<Bytes>,
}

impl Outgoing {
    /// A request's body, which ends when the sender is dropped.
    pub(super) fn request(messages: mpsc::Receiver<Bytes>) -> Self {
        Self { messages, end: None, ready: None }
    }

    /// A response's body, which ends with the status (UNAVAILABLE where there is none) when the
    /// sender of messages is dropped.
    pub(super) fn response(
        messages: mpsc::Receiver<Bytes>,
        end: oneshot::Receiver<Status>,
    ) -> Self {
        Self { messages, end: Some(end), ready: None }
    }

    fn trailers(mut end: oneshot::Receiver<Status>) -> Frame<Bytes> {
        let status =
            end.try_recv().unwrap_or_else(|_| Status::unavailable("the agent ends the stream"));
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("14"));
        }
        Frame::trailers(trailers)
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(bytes) = self.ready.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let Some(message) = ready!(self.messages.poll_recv(context)) else {
            return Poll::Ready(self.end.take().map(|end| Ok(Self::trailers(end))));
        };
        // Only u32::MAX bytes could be announced; both limits on what we pass on are far below.
        let length = u32::try_from(message.len())
            .map_err(|_| Status::resource_exhausted("a message of more than 4 GiB"))?;
        let joined = if message.len() <= JOINED { message.len() } else { 0 };
        let mut header = BytesMut::with_capacity(HEADER + joined);
        header.put_u8(0);
        header.put_u32(length);
        if message.len() <= JOINED {
            header.put(message);
        } else {
            self.ready = Some(message);
        }
        Poll::Ready(Some(Ok(Frame::data(header.freeze()))))
    }
}

/// The length of the header of each message.
const HEADER: usize = 5;
/// A message up to this size is copied behind its header: peers count many tiny frames as an attack.
const JOINED: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use proptest::prelude::*;

    use super::*;

    /// A body that arrives in pieces of these sizes, over and over.
    fn arriving(bytes: &[u8], sizes: &[usize], limit: usize) -> Incoming {
        let mut rest = Bytes::copy_from_slice(bytes);
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            pieces.push(Ok::<_, Infallible>(Frame::data(rest.split_to(rest.len().min(*size)))));
        }
        Incoming::new(Body::new(StreamBody::new(stream::iter(pieces))), limit)
    }

    async fn sent(messages: &[Vec<u8>]) -> Vec<u8> {
        let (sender, receiver) = mpsc::channel(64);
        for message in messages {
            sender.send(message.clone().into()).await.unwrap();
        }
        drop(sender);
        Outgoing::request(receiver).collect().await.unwrap().to_bytes().to_vec()
    }

    async fn received(mut incoming: Incoming) -> (Vec<Bytes>, Result<(), tonic::Code>) {
        let mut messages = Vec::new();
        loop {
            match incoming.next().await {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return (messages, Ok(())),
                Err(status) => return (messages, Err(status.code())),
            }
        }
    }

    #[tokio::test]
    async fn large_compressed_and_truncated_messages_are_refused() {
        let wire = sent(&[vec![1; 9]]).await;
        assert_eq!(received(arriving(&wire, &[3], 9)).await.0, [vec![1; 9]]);
        let too_large = received(arriving(&wire, &[3], 8)).await;
        assert_eq!(too_large, (vec![], Err(tonic::Code::ResourceExhausted)));
        let mut compressed = wire.clone();
        compressed[0] = 1;
        assert_eq!(received(arriving(&compressed, &[3], 9)).await.1, Err(tonic::Code::Internal));
        for cut in 1..wire.len() {
            let end = received(arriving(&wire[..cut], &[3], 9)).await;
            assert_eq!(end, (vec![], Err(tonic::Code::Internal)), "after {cut} bytes");
        }
    }

    proptest! {
        #[test]
        fn messages_arrive_as_sent_however_they_are_cut(
            lengths in proptest::collection::vec(prop_oneof![0usize..40, 8180usize..8200], 0..12),
            sizes in proptest::collection::vec(1usize..3000, 1..8),
        ) {
            let messages: Vec<Vec<u8>> =
                lengths.iter().zip(1u8..).map(|(length, byte)| vec![byte; *length]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let wire = runtime.block_on(sent(&messages));
            let (arrived, end) = runtime.block_on(received(arriving(&wire, &sizes, 9000)));
            prop_assert_eq!(arrived, messages);
            prop_assert_eq!(end, Ok(()));
        }
    }
}
