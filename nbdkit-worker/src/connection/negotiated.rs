//! What a handshake agreed on: all that the transmission phase needs to know besides the open
//! stack.
//!
//! It can be sent to another process. What arrives there is checked like any message: the process
//! that negotiated may be taken over.

#![forbid(unsafe_code)]

use nbd_protocol::constants::TransmissionFlags;
use nbd_protocol::handshake::decode_export_name;
use nbdkit_api::BlockSize;
use serde::{Deserialize, Serialize};

/// The form of replies and the kinds of requests that client and server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Features {
    /// Structured replies, of the compact or the extended form.
    pub(crate) structured: bool,
    /// Extended headers, which include structured replies.
    pub(crate) extended: bool,
    /// The meta context `base:allocation`, for `NBD_CMD_BLOCK_STATUS`.
    pub(crate) base_allocation: bool,
}

/// The result of a handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub(crate) struct Negotiated {
    /// The export's name as the client asked for it, at most 4096 bytes.
    pub(crate) export: String,
    /// Export size, bytes.
    pub(crate) size: u64,
    /// The transmission flags that were sent to the client.
    pub(crate) flags: TransmissionFlags,
    pub(crate) features: Features,
    /// The block size constraints that were sent to the client, if it asked for them and there are
    /// any.
    pub(crate) block_size: Option<BlockSize>,
}

impl std::fmt::Display for Negotiated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Features { structured, extended, base_allocation } = self.features;
        let form = match (structured, extended) {
            (_, true) => "extended headers",
            (true, false) => "structured replies",
            (false, false) => "simple replies",
        };
        write!(f, "size {}, flags {:#x}, {form}", self.size, self.flags)?;
        if base_allocation {
            f.write_str(", base:allocation")?;
        }
        if let Some(BlockSize { minimum, preferred, maximum }) = self.block_size {
            write!(f, ", block size {minimum}/{preferred}/{maximum}")?;
        }
        Ok(())
    }
}

impl Negotiated {
    /// Whether what was agreed on can be kept with an export that was opened again, and is now as
    /// `now` says. It may have grown.
    pub(super) fn still_holds(&self, now: &Negotiated) -> bool {
        let is_read_only = |it: &Negotiated| it.flags.contains(TransmissionFlags::READ_ONLY);
        now.size >= self.size
            && now.flags.contains(self.flags)
            && is_read_only(now) == is_read_only(self)
    }
}

/// [`Negotiated`] as it is sent: plain values, of which any combination can arrive.
#[derive(Serialize, Deserialize)]
struct Unchecked {
    export: String,
    size: u64,
    flags: u16,
    features: Features,
    block_size: Option<[u32; 3]>,
}

impl From<Negotiated> for Unchecked {
    fn from(negotiated: Negotiated) -> Unchecked {
        let Negotiated { export, size, flags, features, block_size } = negotiated;
        let block_size = block_size.map(|size| [size.minimum, size.preferred, size.maximum]);
        Unchecked { export, size, flags: flags.bits(), features, block_size }
    }
}

impl TryFrom<Unchecked> for Negotiated {
    type Error = String;

    fn try_from(unchecked: Unchecked) -> Result<Negotiated, String> {
        let Unchecked { export, size, flags, features, block_size } = unchecked;
        decode_export_name(export.as_bytes()).map_err(|malformed| malformed.to_string())?;
        if i64::try_from(size).is_err() {
            return Err(format!("export size {size} is out of range"));
        }
        let flags = TransmissionFlags::from_bits(flags)
            .filter(|flags| flags.contains(TransmissionFlags::HAS_FLAGS))
            .ok_or_else(|| format!("transmission flags {flags:#x}"))?;
        for (flag, agreed) in [
            (TransmissionFlags::SEND_DF, features.structured),
            (TransmissionFlags::BLOCK_STATUS_PAYLOAD, features.extended),
        ] {
            if flags.contains(flag) && !agreed {
                return Err(format!("transmission flags {flags:#x} need another form of replies"));
            }
        }
        if (features.extended || features.base_allocation) && !features.structured {
            return Err("this needs structured replies".to_owned());
        }
        let block_size = block_size.map(|[minimum, preferred, maximum]| BlockSize {
            minimum,
            preferred,
            maximum,
        });
        if let Some(block_size) = block_size {
            block_size.check()?;
        }
        Ok(Negotiated { export, size, flags, features, block_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_protocol::constants::MAX_STRING;
    use nbdkit_ipc::{Channel, RecvError};

    fn negotiated() -> Negotiated {
        Negotiated {
            export: "disk".into(),
            size: 1 << 40,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_DF,
            features: Features { structured: true, extended: false, base_allocation: true },
            block_size: Some(BlockSize { minimum: 512, preferred: 4096, maximum: u32::MAX }),
        }
    }

    /// Sends what a peer may send and receives it as what it should be.
    fn transfer(unchecked: &Unchecked) -> Result<Negotiated, RecvError> {
        let (ours, theirs) = Channel::<Unchecked, Negotiated>::pair().unwrap();
        // The other end sends the same bytes in the checked type.
        let theirs = Channel::<(), Negotiated>::from_fd(theirs.into_fd());
        ours.send(unchecked, &[]).unwrap();
        theirs.recv().map(|received| received.message)
    }

    #[test]
    fn another_process_receives_what_was_sent() {
        let plain = Negotiated {
            export: String::new(),
            size: i64::MAX as u64,
            flags: TransmissionFlags::HAS_FLAGS,
            features: Features::default(),
            block_size: None,
        };
        let longest = Negotiated { export: "x".repeat(MAX_STRING), ..plain.clone() };
        let extended = Negotiated {
            flags: TransmissionFlags::all(),
            features: Features { structured: true, extended: true, base_allocation: true },
            ..plain.clone()
        };
        for sent in [negotiated(), plain, longest, extended] {
            assert_eq!(transfer(&sent.clone().into()).unwrap(), sent);
        }
    }

    #[test]
    fn what_no_handshake_agrees_on_is_a_violation() {
        type Change = fn(&mut Unchecked);
        let changes: [(&str, Change); 11] = [
            ("long name", |n| n.export = "x".repeat(MAX_STRING + 1)),
            ("NUL in the name", |n| n.export = "a\0b".into()),
            ("size", |n| n.size = 1 << 63),
            ("unknown flag", |n| n.flags |= 1 << 15),
            ("no flags", |n| n.flags = 0),
            ("SEND_DF without structured replies", |n| n.features = Features::default()),
            ("BLOCK_STATUS_PAYLOAD", |n| {
                n.flags |= TransmissionFlags::BLOCK_STATUS_PAYLOAD.bits();
            }),
            ("base:allocation without structured replies", |n| {
                n.flags = TransmissionFlags::HAS_FLAGS.bits();
                n.features.structured = false;
            }),
            ("extended without structured replies", |n| {
                n.flags = TransmissionFlags::HAS_FLAGS.bits();
                n.features = Features { extended: true, ..Features::default() };
            }),
            ("minimum block size", |n| n.block_size = Some([3, 4096, u32::MAX])),
            ("maximum block size", |n| n.block_size = Some([512, 4096, 1])),
        ];
        for (name, change) in changes {
            let mut unchecked = negotiated().into();
            change(&mut unchecked);
            let received = transfer(&unchecked);
            assert!(matches!(received, Err(RecvError::Violation(_))), "{name}: {received:?}");
        }
    }

    #[test]
    fn an_export_that_was_opened_again_may_have_grown_and_may_not_offer_less() {
        let agreed = negotiated();
        assert!(agreed.still_holds(&agreed));
        assert!(agreed.still_holds(&Negotiated { size: agreed.size + 1, ..agreed.clone() }));
        assert!(!agreed.still_holds(&Negotiated { size: agreed.size - 1, ..agreed.clone() }));
        let with = |flags| Negotiated { flags, ..agreed.clone() };
        assert!(agreed.still_holds(&with(agreed.flags | TransmissionFlags::SEND_TRIM)));
        assert!(!agreed.still_holds(&with(TransmissionFlags::HAS_FLAGS)));
        assert!(!agreed.still_holds(&with(agreed.flags | TransmissionFlags::READ_ONLY)));
    }

    #[test]
    fn the_log_says_what_was_agreed_on() {
        assert_eq!(
            negotiated().to_string(),
            "size 1099511627776, flags 0x81, structured replies, base:allocation, \
             block size 512/4096/4294967295"
        );
    }
}
