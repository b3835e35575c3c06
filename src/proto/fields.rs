//! The fields of a protobuf message (protobuf.dev, "Encoding"), one after the other: for messages of which a few
//! fields are needed, and for those that are too large to be decoded before they are checked.

/// A message that is not protobuf, or not with the types that the schema has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a protobuf message of the expected type")]
pub struct Malformed;

/// Walks the fields of a message without looking into them. A field with a wire type other than
/// length-delimited has no payload.
#[derive(Debug)]
pub struct Fields<'a>(pub &'a [u8]);

/// One field.
#[derive(Debug)]
pub struct Field<'a> {
    /// Its number in the schema.
    pub number: u64,
    /// The bytes of a length-delimited field.
    pub payload: Option<&'a [u8]>,
    /// The value of a varint field.
    pub varint: Option<u64>,
    /// All of it, with its tag.
    pub raw: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<Field<'a>, Malformed> {
        let whole = self.0;
        let tag = self.varint()?;
        let number = tag >> 3;
        let mut varint = None;
        let payload = match tag & 7 {
            0 => {
                varint = Some(self.varint()?);
                None
            }
            1 => self.skip(8).map(|_| None)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Some(self.skip(length)?)
            }
            5 => self.skip(4).map(|_| None)?,
            _ => return Err(Malformed),
        };
        let length = whole.len().saturating_sub(self.0.len());
        let raw = whole.get(..length).unwrap_or_default();
        if number == 0 { Err(Malformed) } else { Ok(Field { number, payload, varint, raw }) }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn skip(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (skipped, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(skipped)
    }
}

/// The payloads of the fields with this number, up to the first malformed field.
pub fn payloads(message: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    let fields = Fields(message).map_while(Result::ok);
    fields.filter(move |field| field.number == number).filter_map(|field| field.payload)
}

/// The text of a field.
///
/// # Errors
/// When it is not length-delimited, or not UTF-8.
pub fn text(payload: Option<&[u8]>) -> Result<&str, Malformed> {
    payload.and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn truncated_and_mistyped_messages_are_malformed() {
        for bad in [&[0x0a, 5, b'x'][..], &[0xff; 11], &[0x0b], &[0x02, 0]] {
            assert!(Fields(bad).any(|field| field.is_err()), "{bad:?}");
        }
        assert_eq!(text(None), Err(Malformed));
        assert_eq!(text(Some(b"\xff")), Err(Malformed));
    }

    proptest! {
        #[test]
        fn the_fields_are_the_message(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let whole: Result<Vec<_>, _> = Fields(&bytes).map(|field| field.map(|field| field.raw)).collect();
            if let Ok(whole) = whole {
                prop_assert_eq!(whole.concat(), bytes);
            }
        }
    }
}
