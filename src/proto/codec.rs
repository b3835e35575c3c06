//! How messages are encoded for gRPC streams that carry secrets.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// Protobuf with one buffer for each message. tonic's own codec writes one message behind the other into
/// a block of 8 KiB, which holds the private keys of earlier messages for as long as the stream lives.
pub struct UnsharedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for UnsharedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for UnsharedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::default())
    }
}

/// Too little for a message: each one gets a block of its own size.
const BUFFER_BYTES: usize = 8;
/// Each message is handed on by itself.
const YIELD_BYTES: usize = 1;
