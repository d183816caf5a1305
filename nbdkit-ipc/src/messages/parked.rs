//! The state of a parked connection, on its way from one worker to the next.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// What a worker tells the client's next worker, by way of the listener, to which it means nothing.
/// The word of a process that parses a client's bytes: who decodes it checks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct ParkedState(Vec<u8>);

impl ParkedState {
    /// Most bytes: the longest export name and what else was negotiated.
    pub const MOST: usize = 4096 + 256;

    /// Encodes what the next worker needs; `None` if that is too long.
    pub fn of<T: Serialize>(state: &T) -> Option<ParkedState> {
        let bytes = crate::codec::encode(state)?;
        (bytes.len() <= Self::MOST).then_some(ParkedState(bytes))
    }

    /// What was encoded; `None` if it is no `T`.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        crate::codec::decode(&self.0)
    }
}

impl TryFrom<Vec<u8>> for ParkedState {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<ParkedState, &'static str> {
        if bytes.len() > Self::MOST {
            return Err("the state of a parked connection is too long");
        }
        Ok(ParkedState(bytes))
    }
}

impl From<ParkedState> for Vec<u8> {
    fn from(state: ParkedState) -> Vec<u8> {
        state.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_too_long_is_neither_sent_nor_received() {
        assert!(ParkedState::of(&vec![0_u8; ParkedState::MOST]).is_none());
        let longest = ParkedState(vec![0; ParkedState::MOST]);
        let bytes = crate::codec::encode(&longest).unwrap();
        assert_eq!(crate::codec::decode::<ParkedState>(&bytes), Some(longest));
        let bytes = crate::codec::encode(&ParkedState(vec![0; ParkedState::MOST + 1])).unwrap();
        assert_eq!(crate::codec::decode::<ParkedState>(&bytes), None);
    }

    #[test]
    fn what_is_decoded_is_what_was_encoded() {
        let state = ParkedState::of(&(7_u32, "x".to_owned())).unwrap();
        assert_eq!(state.decode(), Some((7_u32, "x".to_owned())));
        assert_eq!(state.decode::<u8>(), None);
    }
}
