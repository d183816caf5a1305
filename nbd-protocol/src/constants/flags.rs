//! Flags. Bits without a name survive decoding (`from_bits_retain`), so that the caller can refuse
//! them.

use bitflags::bitflags;

bitflags! {
    /// `NBD_FLAG_*` sent by the server in its greeting. NBD protocol, "Handshake flags".
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct HandshakeFlags: u16 {
        /// The server speaks fixed newstyle: options other than `NBD_OPT_EXPORT_NAME` get replies.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The server can leave out the reserved zeroes after `NBD_OPT_EXPORT_NAME`.
        const NO_ZEROES = 1 << 1;
    }

    /// `NBD_FLAG_C_*` sent by the client after the greeting. NBD protocol, "Client flags".
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ClientFlags: u32 {
        /// The client speaks fixed newstyle.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The client wants no reserved zeroes after `NBD_OPT_EXPORT_NAME`.
        const NO_ZEROES = 1 << 1;
    }

    /// `NBD_FLAG_*` of an export. NBD protocol, "Transmission flags".
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1 << 0;
        /// Writes will fail with `NBD_EPERM`.
        const READ_ONLY = 1 << 1;
        /// `NBD_CMD_FLUSH` is supported.
        const SEND_FLUSH = 1 << 2;
        /// `NBD_CMD_FLAG_FUA` is supported.
        const SEND_FUA = 1 << 3;
        /// The medium behaves as a rotating disk.
        const ROTATIONAL = 1 << 4;
        /// `NBD_CMD_TRIM` is supported.
        const SEND_TRIM = 1 << 5;
        /// `NBD_CMD_WRITE_ZEROES` is supported.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// `NBD_CMD_FLAG_DF` is supported; needs structured replies.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers writes of all connections.
        const CAN_MULTI_CONN = 1 << 8;
        /// `NBD_CMD_RESIZE` is supported (experimental).
        const SEND_RESIZE = 1 << 9;
        /// `NBD_CMD_CACHE` is supported.
        const SEND_CACHE = 1 << 10;
        /// `NBD_CMD_FLAG_FAST_ZERO` is supported.
        const SEND_FAST_ZERO = 1 << 11;
        /// `NBD_CMD_BLOCK_STATUS` may carry a payload that selects contexts; needs extended
        /// headers.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }

    /// `NBD_CMD_FLAG_*` of one request. NBD protocol, "Command flags".
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CommandFlags: u16 {
        /// Force unit access: reply when the data is on stable storage.
        const FUA = 1 << 0;
        /// `NBD_CMD_WRITE_ZEROES` must not punch a hole.
        const NO_HOLE = 1 << 1;
        /// `NBD_CMD_READ` wants one content chunk.
        const DF = 1 << 2;
        /// `NBD_CMD_BLOCK_STATUS` wants one descriptor.
        const REQ_ONE = 1 << 3;
        /// `NBD_CMD_WRITE_ZEROES` must fail with `NBD_ENOTSUP` if it would be as slow as a write.
        const FAST_ZERO = 1 << 4;
        /// Extended headers: the request's length counts the bytes of payload that follow it.
        const PAYLOAD_LEN = 1 << 5;
    }

    /// `NBD_REPLY_FLAG_*` of one reply chunk. NBD protocol, "Structured reply flags".
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ReplyFlags: u16 {
        /// The last chunk of this reply.
        const DONE = 1 << 0;
    }
}
