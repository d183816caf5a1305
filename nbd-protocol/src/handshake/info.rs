//! `NBD_OPT_INFO` and `NBD_OPT_GO`: their request, and the payload of `NBD_REP_INFO`.

use crate::Malformed;
use crate::constants::{InfoType, TransmissionFlags};
use crate::wire::{Reader, bounded, put_string, string};

/// The payload of `NBD_OPT_INFO` and `NBD_OPT_GO`: length and bytes of the export name, count and
/// types of the information wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export; empty for the default export.
    pub name: &'a str,
    /// The information that the client asked for, in its order, with repetitions. `NBD_INFO_EXPORT`
    /// is always sent.
    pub infos: InfoTypes<'a>,
}

impl<'a> InfoRequest<'a> {
    /// Decodes a payload.
    ///
    /// # Errors
    /// [`Malformed`] if the name is not a string of at most 4096 bytes, or a length disagrees with
    /// the payload's: reply with `NBD_REP_ERR_INVALID`.
    ///
    /// NBD protocol, `NBD_OPT_INFO`.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("information request", payload);
        let name = reader.string("export name")?;
        let count = usize::from(reader.u16()?);
        let types = reader.bytes(count * 2)?;
        reader.finish()?;
        Ok(InfoRequest { name, infos: InfoTypes { bytes: types } })
    }

    /// Whether the client asked for one type of information.
    #[must_use]
    pub fn wants(&self, info: InfoType) -> bool {
        self.infos.clone().any(|wanted| wanted == info)
    }

    /// Appends a payload, for clients. At most 65535 types fit; more are left out.
    pub fn encode(buf: &mut Vec<u8>, name: &str, infos: &[InfoType]) {
        put_string(buf, name);
        let count = u16::try_from(infos.len()).unwrap_or(u16::MAX);
        buf.extend_from_slice(&count.to_be_bytes());
        for info in infos.iter().take(usize::from(count)) {
            buf.extend_from_slice(&info.0.to_be_bytes());
        }
    }
}

/// The information types of an [`InfoRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoTypes<'a> {
    bytes: &'a [u8],
}

impl Iterator for InfoTypes<'_> {
    type Item = InfoType;

    fn next(&mut self) -> Option<InfoType> {
        let (first, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(InfoType(u16::from_be_bytes(*first)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.bytes.len() / 2;
        (left, Some(left))
    }
}

impl ExactSizeIterator for InfoTypes<'_> {}

/// Block size constraints in bytes. NBD protocol, "Block size constraints".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of this.
    pub minimum: u32,
    /// Requests of this size perform well.
    pub preferred: u32,
    /// The longest payload.
    pub maximum: u32,
}

/// The payload of one `NBD_REP_INFO`: a 16-bit type and its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info<'a> {
    /// `NBD_INFO_EXPORT`: 12 bytes.
    Export {
        /// Export size in bytes.
        size: u64,
        /// The transmission flags.
        flags: TransmissionFlags,
    },
    /// `NBD_INFO_NAME`: the canonical name.
    Name(&'a str),
    /// `NBD_INFO_DESCRIPTION`: human-readable text.
    Description(&'a str),
    /// `NBD_INFO_BLOCK_SIZE`: 14 bytes.
    BlockSize(BlockSizes),
    /// An unknown type; clients must ignore it.
    Unknown {
        /// The type.
        info: InfoType,
        /// Everything after the type.
        payload: &'a [u8],
    },
}

impl<'a> Info<'a> {
    /// Appends the payload of an `NBD_REP_INFO`. Names and descriptions are cut at 4096 bytes.
    pub fn encode(&self, buf: &mut Vec<u8>) {
        buf.extend_from_slice(&self.info_type().0.to_be_bytes());
        match *self {
            Info::Export { size, flags } => {
                buf.extend_from_slice(&size.to_be_bytes());
                buf.extend_from_slice(&flags.bits().to_be_bytes());
            }
            Info::Name(text) | Info::Description(text) => {
                buf.extend_from_slice(bounded(text).as_bytes());
            }
            Info::BlockSize(BlockSizes { minimum, preferred, maximum }) => {
                for size in [minimum, preferred, maximum] {
                    buf.extend_from_slice(&size.to_be_bytes());
                }
            }
            Info::Unknown { payload, .. } => buf.extend_from_slice(payload),
        }
    }

    /// Decodes the payload of an `NBD_REP_INFO`, for clients.
    ///
    /// # Errors
    /// [`Malformed`] if the payload does not have the length of its type, or a name or description
    /// is not a string.
    ///
    /// NBD protocol, `NBD_REP_INFO`.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("information reply", payload);
        let info = match InfoType(reader.u16()?) {
            InfoType::EXPORT => Info::Export {
                size: reader.u64()?,
                flags: TransmissionFlags::from_bits_retain(reader.u16()?),
            },
            InfoType::NAME => Info::Name(string("export name", reader.rest())?),
            InfoType::DESCRIPTION => {
                Info::Description(string("export description", reader.rest())?)
            }
            InfoType::BLOCK_SIZE => Info::BlockSize(BlockSizes {
                minimum: reader.u32()?,
                preferred: reader.u32()?,
                maximum: reader.u32()?,
            }),
            info => Info::Unknown { info, payload: reader.rest() },
        };
        reader.finish()?;
        Ok(info)
    }

    /// The type in front of the payload.
    #[must_use]
    pub fn info_type(&self) -> InfoType {
        match *self {
            Info::Export { .. } => InfoType::EXPORT,
            Info::Name(_) => InfoType::NAME,
            Info::Description(_) => InfoType::DESCRIPTION,
            Info::BlockSize(_) => InfoType::BLOCK_SIZE,
            Info::Unknown { info, .. } => info,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn information_request_has_its_golden_bytes() {
        let mut buf = Vec::new();
        InfoRequest::encode(&mut buf, "disk", &[InfoType::NAME, InfoType(0x1234)]);
        assert_eq!(buf, b"\0\0\0\x04disk\0\x02\0\x01\x12\x34");
        let request = InfoRequest::decode(&buf).unwrap();
        assert_eq!(request.name, "disk");
        assert_eq!(request.infos.len(), 2);
        assert!(request.wants(InfoType::NAME) && !request.wants(InfoType::BLOCK_SIZE));
        assert_eq!(request.infos.collect::<Vec<_>>(), [InfoType::NAME, InfoType(0x1234)]);
    }

    #[test]
    fn a_request_for_the_default_export_and_no_information_is_six_zeroes() {
        let request = InfoRequest::decode(&[0; 6]).unwrap();
        assert_eq!((request.name, request.infos.len()), ("", 0));
    }

    #[test]
    fn every_length_in_a_request_must_agree_with_the_payload() {
        let mut good = Vec::new();
        InfoRequest::encode(&mut good, "disk", &[InfoType::NAME]);
        for cut in 0..good.len() {
            assert!(InfoRequest::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        good.push(0);
        assert_eq!(
            InfoRequest::decode(&good),
            Err(Malformed::Trailing { what: "information request", extra: 1 })
        );
    }

    #[test]
    fn a_name_longer_than_4096_bytes_is_refused_even_if_complete() {
        let mut payload = 4097u32.to_be_bytes().to_vec();
        payload.extend(vec![b'a'; 4097]);
        payload.extend([0, 0]);
        assert_eq!(
            InfoRequest::decode(&payload),
            Err(Malformed::TooLong { what: "export name", limit: 4096, found: 4097 })
        );
    }

    #[test]
    fn a_length_field_of_4_gib_is_refused_and_does_not_overflow() {
        assert!(matches!(
            InfoRequest::decode(&[0xff; 8]),
            Err(Malformed::TooLong { found: 0xffff_ffff, .. })
        ));
    }

    #[test]
    fn information_has_its_golden_bytes() {
        let cases: [(Info<'_>, &[u8]); 5] = [
            (
                Info::Export { size: 0x10_0000, flags: TransmissionFlags::HAS_FLAGS },
                b"\0\0\0\0\0\0\0\x10\0\0\0\x01",
            ),
            (Info::Name("x"), b"\0\x01x"),
            (Info::Description(""), b"\0\x02"),
            (
                Info::BlockSize(BlockSizes { minimum: 1, preferred: 4096, maximum: 0x400_0000 }),
                b"\0\x03\0\0\0\x01\0\0\x10\0\x04\0\0\0",
            ),
            (Info::Unknown { info: InfoType(9), payload: b"?" }, b"\0\x09?"),
        ];
        for (info, golden) in cases {
            let mut buf = Vec::new();
            info.encode(&mut buf);
            assert_eq!(buf, golden, "{info:?}");
            assert_eq!(Info::decode(golden), Ok(info));
        }
    }

    #[test]
    fn information_of_fixed_size_rejects_every_other_size() {
        assert!(matches!(Info::decode(&[0; 11]), Err(Malformed::Truncated { .. })));
        assert!(matches!(Info::decode(&[0; 13]), Err(Malformed::Trailing { extra: 1, .. })));
        let mut sizes = [0; 15];
        sizes[1] = 3;
        assert!(matches!(Info::decode(&sizes), Err(Malformed::Trailing { extra: 1, .. })));
        assert!(matches!(Info::decode(&sizes[..13]), Err(Malformed::Truncated { .. })));
    }
}
