//! `NBD_REP_SERVER`: one export in the reply to `NBD_OPT_LIST`.

use crate::Malformed;
use crate::wire::{Reader, bounded, put_string, string};

/// The payload of `NBD_REP_SERVER`: length and bytes of the name, then the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerReply<'a> {
    /// The export's name.
    pub name: &'a str,
    /// Human-readable description; empty if there is none.
    pub description: &'a str,
}

impl<'a> ServerReply<'a> {
    /// Appends a payload; both strings are cut at 4096 bytes.
    pub fn encode(&self, buf: &mut Vec<u8>) {
        put_string(buf, self.name);
        buf.extend_from_slice(bounded(self.description).as_bytes());
    }

    /// Decodes a payload, for clients.
    ///
    /// # Errors
    /// [`Malformed`] if the name is longer than the payload, or either part is not a string.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("export list entry", payload);
        let name = reader.string("export name")?;
        let description = string("export description", reader.rest())?;
        Ok(ServerReply { name, description })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_entry_has_its_golden_bytes() {
        for (entry, golden) in [
            (ServerReply { name: "", description: "" }, b"\0\0\0\0".as_slice()),
            (ServerReply { name: "ab", description: "CD" }, b"\0\0\0\x02abCD"),
        ] {
            let mut buf = Vec::new();
            entry.encode(&mut buf);
            assert_eq!(buf, golden);
            assert_eq!(ServerReply::decode(golden), Ok(entry));
        }
    }

    #[test]
    fn a_name_longer_than_the_payload_is_truncated() {
        assert_eq!(
            ServerReply::decode(b"\0\0\0\x03ab"),
            Err(Malformed::Truncated { what: "export list entry", needed: 3, available: 2 })
        );
    }
}
