//! Encoding of messages. The only module that names bincode: 2.0.1 is pinned since version 3 on the
//! registry is an empty tombstone; the crate wincode reads the same bytes, should it ever have to
//! go.

#![forbid(unsafe_code)]

use bincode::config::{self, Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::MAX_PACKET;

/// Integers of fixed size, so that the golden bytes are easy to read; allocations bounded by the
/// packet size.
const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_PACKET>> =
    config::standard().with_fixed_int_encoding().with_limit::<MAX_PACKET>();

/// The bytes of a message; `None` if they would not fit a packet.
pub(crate) fn encode<T: Serialize>(message: &T) -> Option<Vec<u8>> {
    bincode::serde::encode_to_vec(message, CONFIG).ok().filter(|bytes| bytes.len() <= MAX_PACKET)
}

/// The message of which `packet` is exactly the bytes; `None` for anything else.
pub(crate) fn decode<T: DeserializeOwned>(packet: &[u8]) -> Option<T> {
    match bincode::serde::decode_from_slice(packet, CONFIG) {
        Ok((message, used)) if used == packet.len() => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&(7u32, String::from("x"))).unwrap();
        assert_eq!(decode::<(u32, String)>(&bytes), Some((7, String::from("x"))));
        bytes.push(0);
        assert_eq!(decode::<(u32, String)>(&bytes), None);
    }

    #[test]
    fn a_length_that_lies_allocates_nothing() {
        let mut bytes = u64::MAX.to_le_bytes().to_vec();
        bytes.extend([0; 16]);
        assert_eq!(decode::<Vec<u8>>(&bytes), None);
    }

    #[test]
    fn a_message_longer_than_a_packet_is_not_encoded() {
        assert!(encode(&vec![0u8; MAX_PACKET]).is_none());
    }
}
