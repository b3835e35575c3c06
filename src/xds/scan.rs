//! Reads a few outer fields of a protobuf message and skips the rest, without a copy.
//!
//! Wire format: the Protocol Buffers encoding guide. A message that breaks it has no such fields.

use super::intercept::Flavour;

/// The outer fields of a discovery message that the relay looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outline<'a> {
    /// `type_url`.
    pub(super) type_url: &'a str,
    /// `nonce` or `response_nonce`.
    pub(super) nonce: &'a str,
    /// `version_info`, in the state-of-the-world flavour.
    pub(super) version: &'a str,
    /// `error_detail.message` of a request that refuses a response.
    pub(super) refusal: Option<&'a str>,
}

/// The outline of a request.
pub(super) fn request(flavour: Flavour, message: &[u8]) -> Outline<'_> {
    let (type_url, nonce, refusal) = match flavour {
        Flavour::StateOfTheWorld => (4, 5, 6),
        Flavour::Delta => (2, 6, 7),
    };
    let mut outline = Outline::default();
    for (number, value) in fields(message) {
        match number {
            number if number == type_url => outline.type_url = text(value),
            number if number == nonce => outline.nonce = text(value),
            // google.rpc.Status: message = 2.
            number if number == refusal => {
                let words = fields(value).find(|(number, _)| *number == 2);
                outline.refusal = Some(words.map_or("", |(_, words)| text(words)));
            }
            _ => {}
        }
    }
    outline
}

/// The outline of a response: the field numbers are the same in both flavours.
pub(super) fn response(message: &[u8]) -> Outline<'_> {
    let mut outline = Outline::default();
    for (number, value) in fields(message) {
        match number {
            1 => outline.version = text(value),
            4 => outline.type_url = text(value),
            5 => outline.nonce = text(value),
            _ => {}
        }
    }
    outline
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// The length-delimited fields of a message, in their order; it ends where the message breaks.
fn fields(message: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = message;
    std::iter::from_fn(move || {
        loop {
            let key = varint(&mut rest)?;
            match key & 7 {
                0 => drop(varint(&mut rest)?),
                1 => drop(take(&mut rest, 8)?),
                2 => {
                    let length = usize::try_from(varint(&mut rest)?).ok()?;
                    return Some((key >> 3, take(&mut rest, length)?));
                }
                5 => drop(take(&mut rest, 4)?),
                _ => return None,
            }
        }
    })
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto::discovery::{
        DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse, Status,
    };

    #[test]
    fn outlines_match_what_was_encoded() {
        let refusal = Some(Status { code: 13, message: "bad listener".into() });
        let sotw = DiscoveryRequest {
            version_info: "7".into(),
            type_url: "t".into(),
            response_nonce: "n".into(),
            error_detail: refusal.clone(),
            ..DiscoveryRequest::default()
        };
        let delta = DeltaDiscoveryRequest {
            type_url: "t".into(),
            response_nonce: "n".into(),
            error_detail: refusal,
            ..DeltaDiscoveryRequest::default()
        };
        let expected =
            Outline { type_url: "t", nonce: "n", version: "", refusal: Some("bad listener") };
        assert_eq!(request(Flavour::StateOfTheWorld, &sotw.encode_to_vec()), expected);
        assert_eq!(request(Flavour::Delta, &delta.encode_to_vec()), expected);
        let answer =
            DiscoveryResponse { version_info: "7".into(), nonce: "n".into(), ..Default::default() };
        let bytes = answer.encode_to_vec();
        assert_eq!((response(&bytes).version, response(&bytes).nonce), ("7", "n"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(fields(&bytes).count());
            request(Flavour::Delta, &bytes);
            response(&bytes);
        }
    }
}
