//! What the server answered to an option, and how a transcript shows it in one line.

use std::fmt;

use nbd_protocol::constants::{InfoType, Opt, Rep, TransmissionFlags};
use nbd_protocol::handshake::{BlockSizes, Info};

/// One option reply, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option that the server says it replies to.
    pub option: Opt,
    /// The kind of reply.
    pub reply: Rep,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl OptionReply {
    /// The payload as text: the message of an error reply.
    #[must_use]
    pub fn message(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

impl fmt::Display for OptionReply {
    /// The kind only: messages are for people and may differ between servers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reply)
    }
}

/// A fact about an export, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedInfo {
    /// Size in bytes and transmission flags.
    Export {
        /// Export size in bytes.
        size: u64,
        /// What the export can do.
        flags: TransmissionFlags,
    },
    /// The canonical name.
    Name(String),
    /// The description.
    Description(String),
    /// Block size constraints.
    BlockSize(BlockSizes),
    /// Anything else.
    Unknown(InfoType, Vec<u8>),
}

impl From<Info<'_>> for OwnedInfo {
    fn from(info: Info<'_>) -> Self {
        match info {
            Info::Export { size, flags } => OwnedInfo::Export { size, flags },
            Info::Name(name) => OwnedInfo::Name(name.to_owned()),
            Info::Description(text) => OwnedInfo::Description(text.to_owned()),
            Info::BlockSize(sizes) => OwnedInfo::BlockSize(sizes),
            Info::Unknown { info, payload } => OwnedInfo::Unknown(info, payload.to_vec()),
        }
    }
}

impl fmt::Display for OwnedInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OwnedInfo::Export { size, flags } => {
                write!(f, "size={size} flags={:#x}", flags.bits())
            }
            OwnedInfo::Name(name) => write!(f, "name={name:?}"),
            OwnedInfo::Description(text) => write!(f, "description={text:?}"),
            OwnedInfo::BlockSize(BlockSizes { minimum, preferred, maximum }) => {
                write!(f, "block sizes={minimum}/{preferred}/{maximum}")
            }
            OwnedInfo::Unknown(info, payload) => write!(f, "{info}={payload:02x?}"),
        }
    }
}

/// The answer to `NBD_OPT_INFO` or `NBD_OPT_GO`.
#[derive(Clone, Debug)]
pub struct InfoAnswer {
    /// The facts, in the server's order.
    pub infos: Vec<OwnedInfo>,
    /// `NBD_REP_ACK` or an error.
    pub end: OptionReply,
}

impl InfoAnswer {
    /// Export size in bytes and transmission flags, if the server accepted.
    #[must_use]
    pub fn export(&self) -> Option<(u64, TransmissionFlags)> {
        self.infos.iter().find_map(|info| match info {
            OwnedInfo::Export { size, flags } => Some((*size, *flags)),
            _ => None,
        })
    }

    /// The block size constraints, if the server sent any.
    #[must_use]
    pub fn block_sizes(&self) -> Option<BlockSizes> {
        self.infos.iter().find_map(|info| match info {
            OwnedInfo::BlockSize(sizes) => Some(*sizes),
            _ => None,
        })
    }
}

impl fmt::Display for InfoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.end)?;
        self.infos.iter().try_for_each(|info| write!(f, " {info}"))
    }
}

/// The answer to `NBD_OPT_LIST`.
#[derive(Clone, Debug)]
pub struct ListAnswer {
    /// Names and descriptions, in the server's order.
    pub exports: Vec<(String, String)>,
    /// `NBD_REP_ACK` or an error.
    pub end: OptionReply,
}

impl fmt::Display for ListAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.end)?;
        self.exports.iter().try_for_each(|(name, description)| match description.as_str() {
            "" => write!(f, " {name:?}"),
            _ => write!(f, " {name:?}({description:?})"),
        })
    }
}

/// The answer to a meta context option.
#[derive(Clone, Debug)]
pub struct MetaAnswer {
    /// Ids and names, in the server's order.
    pub contexts: Vec<(u32, String)>,
    /// `NBD_REP_ACK` or an error.
    pub end: OptionReply,
}

impl fmt::Display for MetaAnswer {
    /// Ids are the server's own affair and are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.end)?;
        self.contexts.iter().try_for_each(|(_, name)| write!(f, " {name}"))
    }
}
