//! As much of protobuf's wire format as it takes to find one field; a dependency would be many times that.

use std::time::Duration;

/// The delay of the first `google.rpc.RetryInfo` among the details of a `google.rpc.Status`.
pub(super) fn retry_delay(status: &[u8]) -> Option<Duration> {
    let details = Fields(status).filter_map(|field| field.bytes(3));
    let delay = details.filter_map(|any| {
        let kind = Fields(any).filter_map(|field| field.bytes(1)).last()?;
        kind.ends_with(b"/google.rpc.RetryInfo").then_some(())?;
        let info = Fields(any).filter_map(|field| field.bytes(2)).last()?;
        Fields(info).filter_map(|field| field.bytes(1)).last()
    });
    delay.map(span).next()
}

/// A `google.protobuf.Duration`; one that is negative is none.
fn span(duration: &[u8]) -> Duration {
    let number = |at| Fields(duration).filter_map(|field| field.number(at)).last().unwrap_or(0);
    match (u64::try_from(number(1)), u32::try_from(number(2))) {
        (Ok(seconds), Ok(nanos @ ..1_000_000_000)) => Duration::new(seconds, nanos),
        _ => Duration::ZERO,
    }
}

/// The fields of a message, up to the first that cannot be read.
struct Fields<'a>(&'a [u8]);

struct Field<'a> {
    number: u64,
    value: Value<'a>,
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed width, which nothing here has.
    Other,
}

impl<'a> Field<'a> {
    fn bytes(&self, number: u64) -> Option<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) if self.number == number => Some(bytes),
            _ => None,
        }
    }

    fn number(&self, number: u64) -> Option<i64> {
        match self.value {
            // negative numbers are sent as the unsigned ones with the same bits
            Value::Number(value) if self.number == number => Some(value.cast_signed()),
            _ => None,
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return None,
        };
        Some(Field { number: tag >> 3, value })
    }
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// Seven bits in each byte, the lowest first; the top bit says that more follow.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use prost_types::{Any, Duration as ProtoDuration};

    use super::*;

    /// `google.rpc.Status` and `RetryInfo`, by their fields' numbers.
    #[derive(Clone, PartialEq, Message)]
    struct Status {
        #[prost(int32, tag = "1")]
        code: i32,
        #[prost(string, tag = "2")]
        message: String,
        #[prost(message, repeated, tag = "3")]
        details: Vec<Any>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        retry_delay: Option<ProtoDuration>,
    }

    fn info(seconds: i64, nanos: i32) -> Any {
        let info = RetryInfo { retry_delay: Some(ProtoDuration { seconds, nanos }) };
        Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: info.encode_to_vec() }
    }

    fn read(details: Vec<Any>) -> Option<Duration> {
        retry_delay(&Status { code: 8, message: "busy".into(), details }.encode_to_vec())
    }

    #[test]
    fn only_a_delay_that_is_one_is_read() {
        let other = Any { type_url: "type.googleapis.com/google.rpc.ErrorInfo".into(), value: b"\x0a\x01x".into() };
        assert_eq!(read(vec![]), None);
        assert_eq!(read(vec![other.clone()]), None);
        assert_eq!(read(vec![other, info(3, 5), info(9, 0)]), Some(Duration::new(3, 5)));
        assert_eq!(read(vec![info(-3, -5)]), Some(Duration::ZERO));
        assert_eq!(read(vec![info(i64::MAX, i32::MAX)]), Some(Duration::ZERO), "no such duration");
        assert_eq!(read(vec![Any { value: vec![], ..info(1, 0) }]), None, "a RetryInfo that says nothing");
    }

    proptest! {
        #[test]
        fn what_prost_writes_is_read(seconds in 0..i64::MAX, nanos in 0..1_000_000_000_i32) {
            let span = Duration::new(seconds.unsigned_abs(), nanos.unsigned_abs());
            prop_assert_eq!(read(vec![info(seconds, nanos)]), Some(span));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes: Vec<u8>) {
            let _ = retry_delay(&bytes);
        }

        /// Cut or damaged at any place, a status gives its own delay, another one, or none; it never panics.
        #[test]
        fn damage_does_no_harm(cut in 0..80_usize, at in 0..80_usize, byte: u8) {
            let mut status = Status { code: 8, message: String::new(), details: vec![info(7, 0)] }.encode_to_vec();
            status.truncate(cut);
            if let Some(place) = status.get_mut(at) {
                *place = byte;
            }
            let _ = retry_delay(&status);
        }
    }
}
