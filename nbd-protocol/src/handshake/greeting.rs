//! The server's greeting, oldstyle and newstyle, and the reply that ends an `NBD_OPT_EXPORT_NAME`
//! handshake.

use crate::Malformed;
use crate::constants::{
    CLISERV_MAGIC, HandshakeFlags, IHAVEOPT, NBDMAGIC, RESERVED_ZEROES, TransmissionFlags,
};
use crate::wire::field;

/// Bytes of a newstyle greeting.
pub const NEWSTYLE_GREETING_LENGTH: usize = 18;
/// Bytes of an oldstyle greeting.
pub const OLDSTYLE_GREETING_LENGTH: usize = 152;

/// The greeting that a server sends on accepting a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Option haggling follows; the client replies with its own flags. NBD protocol, "Newstyle
    /// negotiation".
    Newstyle {
        /// The server's handshake flags.
        flags: HandshakeFlags,
    },
    /// Transmission follows at once. NBD protocol, "Oldstyle negotiation".
    Oldstyle {
        /// Export size in bytes.
        size: u64,
        /// The low half of the 32-bit flags word; the high half is zero.
        flags: TransmissionFlags,
    },
}

impl Greeting {
    /// Encodes a newstyle greeting: `NBDMAGIC`, `IHAVEOPT`, 16 bits of flags.
    #[must_use]
    pub fn encode_newstyle(flags: HandshakeFlags) -> [u8; NEWSTYLE_GREETING_LENGTH] {
        let mut bytes = [0; NEWSTYLE_GREETING_LENGTH];
        bytes[..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
        bytes[16..].copy_from_slice(&flags.bits().to_be_bytes());
        bytes
    }

    /// Encodes an oldstyle greeting: `NBDMAGIC`, `cliserv_magic`, export size in bytes, 32 bits of
    /// flags, 124 zeroes.
    #[must_use]
    pub fn encode_oldstyle(size: u64, flags: TransmissionFlags) -> [u8; OLDSTYLE_GREETING_LENGTH] {
        let mut bytes = [0; OLDSTYLE_GREETING_LENGTH];
        bytes[..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&CLISERV_MAGIC.to_be_bytes());
        bytes[16..24].copy_from_slice(&size.to_be_bytes());
        bytes[24..28].copy_from_slice(&u32::from(flags.bits()).to_be_bytes());
        bytes
    }

    /// The length of a greeting, from its first 16 bytes: [`NEWSTYLE_GREETING_LENGTH`] or
    /// [`OLDSTYLE_GREETING_LENGTH`].
    ///
    /// # Errors
    /// [`Malformed::Magic`] if it is of neither style.
    pub fn length(start: &[u8; 16]) -> Result<usize, Malformed> {
        let magic = u64::from_be_bytes(field(start, 0));
        if magic != NBDMAGIC {
            return Err(Malformed::Magic { expected: NBDMAGIC, found: magic });
        }
        match u64::from_be_bytes(field(start, 8)) {
            IHAVEOPT => Ok(NEWSTYLE_GREETING_LENGTH),
            CLISERV_MAGIC => Ok(OLDSTYLE_GREETING_LENGTH),
            found => Err(Malformed::Magic { expected: IHAVEOPT, found }),
        }
    }

    /// Decodes a complete newstyle greeting; unknown flags are retained.
    ///
    /// # Errors
    /// [`Malformed::Magic`].
    pub fn decode_newstyle(bytes: &[u8; NEWSTYLE_GREETING_LENGTH]) -> Result<Greeting, Malformed> {
        expect_second_magic(&field(bytes, 0), IHAVEOPT)?;
        let flags = HandshakeFlags::from_bits_retain(u16::from_be_bytes(field(bytes, 16)));
        Ok(Greeting::Newstyle { flags })
    }

    /// Decodes a complete oldstyle greeting; the reserved bytes are not checked.
    ///
    /// # Errors
    /// [`Malformed::Magic`]; [`Malformed::Value`] if the high half of the flags word is not zero.
    pub fn decode_oldstyle(bytes: &[u8; OLDSTYLE_GREETING_LENGTH]) -> Result<Greeting, Malformed> {
        expect_second_magic(&field(bytes, 0), CLISERV_MAGIC)?;
        let size = u64::from_be_bytes(field(bytes, 16));
        let flags = u32::from_be_bytes(field(bytes, 24));
        let Ok(flags) = u16::try_from(flags) else {
            return Err(Malformed::Value {
                what: "oldstyle flags",
                expected: "no handshake flags",
                found: u64::from(flags),
            });
        };
        Ok(Greeting::Oldstyle { size, flags: TransmissionFlags::from_bits_retain(flags) })
    }
}

fn expect_second_magic(start: &[u8; 16], expected: u64) -> Result<(), Malformed> {
    let magic = u64::from_be_bytes(field(start, 0));
    if magic != NBDMAGIC {
        return Err(Malformed::Magic { expected: NBDMAGIC, found: magic });
    }
    let found = u64::from_be_bytes(field(start, 8));
    if found != expected {
        return Err(Malformed::Magic { expected, found });
    }
    Ok(())
}

/// The reply to `NBD_OPT_EXPORT_NAME`; transmission follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportNameReply {
    /// Export size in bytes.
    pub size: u64,
    /// The transmission flags.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Bytes without the reserved zeroes.
    pub const LENGTH: usize = 10;

    /// Appends 10 bytes, and 124 zeroes unless `no_zeroes` (the client sent
    /// `NBD_FLAG_C_NO_ZEROES`).
    pub fn encode(self, buf: &mut Vec<u8>, no_zeroes: bool) {
        buf.extend_from_slice(&self.size.to_be_bytes());
        buf.extend_from_slice(&self.flags.bits().to_be_bytes());
        if !no_zeroes {
            buf.extend_from_slice(&[0; RESERVED_ZEROES]);
        }
    }

    /// Decodes the part before the reserved zeroes. Any 10 bytes are legal.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Self {
        ExportNameReply {
            size: u64::from_be_bytes(field(bytes, 0)),
            flags: TransmissionFlags::from_bits_retain(u16::from_be_bytes(field(bytes, 8))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newstyle_greeting_has_its_golden_bytes() {
        let bytes = Greeting::encode_newstyle(HandshakeFlags::all());
        assert_eq!(&bytes, b"NBDMAGICIHAVEOPT\x00\x03");
        assert_eq!(
            Greeting::decode_newstyle(&bytes),
            Ok(Greeting::Newstyle { flags: HandshakeFlags::all() })
        );
        assert_eq!(Greeting::length(&field(&bytes, 0)), Ok(18));
    }

    #[test]
    fn oldstyle_greeting_has_its_golden_bytes() {
        let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
        let bytes = Greeting::encode_oldstyle(0x0102_0304_0506_0708, flags);
        assert_eq!(&bytes[..16], b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53");
        assert_eq!(&bytes[16..28], b"\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x03");
        assert!(bytes[28..].iter().all(|byte| *byte == 0));
        assert_eq!(
            Greeting::decode_oldstyle(&bytes),
            Ok(Greeting::Oldstyle { size: 0x0102_0304_0506_0708, flags })
        );
        assert_eq!(Greeting::length(&field(&bytes, 0)), Ok(152));
    }

    #[test]
    fn a_greeting_of_the_other_style_is_refused() {
        let mut bytes = Greeting::encode_newstyle(HandshakeFlags::empty());
        bytes[8..16].copy_from_slice(&CLISERV_MAGIC.to_be_bytes());
        assert_eq!(
            Greeting::decode_newstyle(&bytes),
            Err(Malformed::Magic { expected: IHAVEOPT, found: CLISERV_MAGIC })
        );
        bytes[0] = 0;
        assert!(matches!(
            Greeting::length(&field(&bytes, 0)),
            Err(Malformed::Magic { expected: NBDMAGIC, .. })
        ));
    }

    #[test]
    fn export_name_reply_ends_in_zeroes_unless_the_client_sent_no_zeroes() {
        let reply = ExportNameReply { size: 1 << 20, flags: TransmissionFlags::HAS_FLAGS };
        let mut short = Vec::new();
        reply.encode(&mut short, true);
        assert_eq!(short, b"\0\0\0\0\0\x10\0\0\0\x01");
        let mut long = Vec::new();
        reply.encode(&mut long, false);
        assert_eq!(long.len(), 134);
        assert_eq!(ExportNameReply::decode(&field::<10, 134>(&long.try_into().unwrap(), 0)), reply);
    }
}
