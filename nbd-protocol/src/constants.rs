//! Numbers of the protocol, under the protocol's own names.
//!
//! Names drop the `NBD_`, `NBD_OPT_`, … prefix that their type replaces; [`std::fmt::Display`]
//! prints it. NBD protocol, "Values".

mod errors;
mod flags;
mod numbers;

pub use errors::NbdError;
pub use flags::{ClientFlags, CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags};
pub use numbers::{ChunkType, Command, InfoType, Opt, Rep};

/// `NBDMAGIC` in ASCII, the `INIT_PASSWD`: the first eight bytes of every greeting.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT` in ASCII: second word of the newstyle greeting, and first word of every option
/// request.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// `cliserv_magic`: second word of the oldstyle greeting.
pub const CLISERV_MAGIC: u64 = 0x0000_4202_8186_1253;
/// First word of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// `NBD_REQUEST_MAGIC`: a compact request, 28 bytes.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// `NBD_EXTENDED_REQUEST_MAGIC`: an extended request, 32 bytes.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// `NBD_SIMPLE_REPLY_MAGIC`.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// `NBD_STRUCTURED_REPLY_MAGIC`: a reply chunk with a 20-byte header.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// `NBD_EXTENDED_REPLY_MAGIC`: a reply chunk with a 32-byte header.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The longest string, in bytes: export names, descriptions, meta context queries, error messages.
///
/// NBD protocol, "Conventions".
pub const MAX_STRING: usize = 4096;

/// The longest option payload that this implementation reads, in bytes.
///
/// The protocol sets no limit. Every `NBD_OPT_GO` that the protocol can express fits (a 4096-byte
/// name and 65535 information requests need 135172 bytes), as do 60 meta context queries of the
/// greatest length; a client that has not yet chosen an export can make the server allocate no more
/// than this.
pub const MAX_OPTION_LENGTH: u32 = 256 * 1024;

/// The largest request that a plugin sees, and the largest payload in either direction, in bytes
/// (64 MiB).
///
/// nbdkit-plugin(3): plugins see no larger request.
pub const MAX_REQUEST: u32 = 64 * 1024 * 1024;

/// The longest extent that a 32-bit block status descriptor may carry here: 4 GiB less 64 KiB, a
/// multiple of every legal minimum block size.
pub const MAX_DESCRIPTOR_LENGTH: u32 = 0xffff_0000;

/// The reserved zeroes after an oldstyle greeting and, unless the client sent
/// `NBD_FLAG_C_NO_ZEROES`, an `NBD_OPT_EXPORT_NAME` reply.
pub const RESERVED_ZEROES: usize = 124;

/// The one standard metadata context.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// `NBD_STATE_HOLE` of `base:allocation`: not allocated in the backing storage.
pub const STATE_HOLE: u32 = 1;
/// `NBD_STATE_ZERO` of `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u32 = 2;
