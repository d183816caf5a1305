//! Message types and codes. Each is a newtype rather than an enum: an unknown number is legal on
//! the wire, needs an error reply, and is echoed exactly.

use std::fmt;

/// Declares a newtype with named values, a `name`, and a `Display` in the protocol's spelling.
macro_rules! numbers {
    ($(#[$doc:meta])* $type:ident: $int:ty, $prefix:literal {
        $($(#[$value_doc:meta])* $name:ident = $value:expr,)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub $int);

        impl $type {
            $($(#[$value_doc])* pub const $name: $type = $type($value);)+

            /// The value's name in the protocol document, with its prefix; `None` if it has none.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $($type::$name => Some(concat!($prefix, stringify!($name))),)+
                    _ => None,
                }
            }
        }

        impl fmt::Display for $type {
            /// The protocol's name, or `unknown (0x…)`.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, "unknown ({:#x})", self.0),
                }
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

numbers! {
    /// `NBD_OPT_*`: what the client asks for during option haggling. NBD protocol, "Option types".
    Opt: u32, "NBD_OPT_" {
        /// Choose an export and begin transmission; cannot report an error.
        EXPORT_NAME = 1,
        /// End the session.
        ABORT = 2,
        /// List exports.
        LIST = 3,
        /// Withdrawn.
        PEEK_EXPORT = 4,
        /// Begin TLS.
        STARTTLS = 5,
        /// Describe an export.
        INFO = 6,
        /// Describe an export and begin transmission.
        GO = 7,
        /// Use structured replies.
        STRUCTURED_REPLY = 8,
        /// List metadata contexts.
        LIST_META_CONTEXT = 9,
        /// Choose metadata contexts.
        SET_META_CONTEXT = 10,
        /// Use extended headers, and structured replies with them.
        EXTENDED_HEADERS = 11,
    }
}

numbers! {
    /// `NBD_REP_*`: kinds of option reply. NBD protocol, "Option reply types".
    Rep: u32, "NBD_REP_" {
        /// Success; the last reply to the option.
        ACK = 1,
        /// An export in a list.
        SERVER = 2,
        /// Information about an export.
        INFO = 3,
        /// A metadata context.
        META_CONTEXT = 4,
        /// The option is unknown, or known and not offered.
        ERR_UNSUP = 0x8000_0001,
        /// Forbidden by the server's configuration.
        ERR_POLICY = 0x8000_0002,
        /// The option's data is malformed, or the option makes no sense now.
        ERR_INVALID = 0x8000_0003,
        /// Not possible on this platform or in this build.
        ERR_PLATFORM = 0x8000_0004,
        /// Begin TLS first.
        ERR_TLS_REQD = 0x8000_0005,
        /// No such export.
        ERR_UNKNOWN = 0x8000_0006,
        /// The server is shutting down.
        ERR_SHUTDOWN = 0x8000_0007,
        /// The client must first ask for `NBD_INFO_BLOCK_SIZE`.
        ERR_BLOCK_SIZE_REQD = 0x8000_0008,
        /// The request or its reply is too large.
        ERR_TOO_BIG = 0x8000_0009,
        /// Use extended headers first.
        ERR_EXT_HEADER_REQD = 0x8000_000a,
    }
}

impl Rep {
    /// Whether the reply reports an error: bit 31.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

numbers! {
    /// `NBD_INFO_*`: information about an export. NBD protocol, `NBD_REP_INFO`.
    InfoType: u16, "NBD_INFO_" {
        /// Size and transmission flags; always sent.
        EXPORT = 0,
        /// The canonical name.
        NAME = 1,
        /// A description for people.
        DESCRIPTION = 2,
        /// Minimum, preferred and maximum block size.
        BLOCK_SIZE = 3,
    }
}

numbers! {
    /// `NBD_CMD_*`: request types. NBD protocol, "Request types".
    Command: u16, "NBD_CMD_" {
        /// Read bytes.
        READ = 0,
        /// Write the bytes that follow the request.
        WRITE = 1,
        /// End the session; no reply.
        DISC = 2,
        /// Put earlier writes on stable storage.
        FLUSH = 3,
        /// Discard a range.
        TRIM = 4,
        /// Read a range into the server's cache.
        CACHE = 5,
        /// Write zeroes without payload.
        WRITE_ZEROES = 6,
        /// Ask which parts are holes or zeroes.
        BLOCK_STATUS = 7,
        /// Change the size (experimental).
        RESIZE = 8,
    }
}

numbers! {
    /// `NBD_REPLY_TYPE_*`: kinds of structured reply chunk. NBD protocol, "Structured reply types".
    ChunkType: u16, "NBD_REPLY_TYPE_" {
        /// No payload; always last.
        NONE = 0,
        /// Bytes at an offset.
        OFFSET_DATA = 1,
        /// Zeroes at an offset.
        OFFSET_HOLE = 2,
        /// Block descriptors with 32-bit lengths and flags.
        BLOCK_STATUS = 5,
        /// Block descriptors with 64-bit lengths and flags; extended headers only.
        BLOCK_STATUS_EXT = 6,
        /// An error of the whole request.
        ERROR = 0x8001,
        /// An error at an offset.
        ERROR_OFFSET = 0x8002,
    }
}

impl ChunkType {
    /// Whether the chunk reports an error, of a known type or not: bit 15.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_protocol_document() {
        assert_eq!(Opt::GO.to_string(), "NBD_OPT_GO");
        assert_eq!(Rep::ERR_TLS_REQD.to_string(), "NBD_REP_ERR_TLS_REQD");
        assert_eq!(InfoType::BLOCK_SIZE.to_string(), "NBD_INFO_BLOCK_SIZE");
        assert_eq!(Command::WRITE_ZEROES.to_string(), "NBD_CMD_WRITE_ZEROES");
        assert_eq!(ChunkType::OFFSET_HOLE.to_string(), "NBD_REPLY_TYPE_OFFSET_HOLE");
        assert_eq!(Opt(0x1234).to_string(), "unknown (0x1234)");
        assert_eq!(format!("{:?}", Command(9)), "unknown (0x9)");
    }

    #[test]
    fn numbers_are_those_of_the_protocol_document() {
        assert_eq!(Opt::EXTENDED_HEADERS, Opt(11));
        assert_eq!(Rep::ERR_EXT_HEADER_REQD, Rep((1 << 31) + 10));
        assert_eq!(Command::BLOCK_STATUS, Command(7));
        assert_eq!(ChunkType::ERROR_OFFSET, ChunkType((1 << 15) + 2));
    }

    #[test]
    fn unknown_errors_are_still_errors() {
        assert!(ChunkType(0x9999).is_error() && !ChunkType(0x7fff).is_error());
        assert!(Rep(0x8000_ffff).is_error() && !Rep::META_CONTEXT.is_error());
    }
}
