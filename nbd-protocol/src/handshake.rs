//! The handshake phase: greetings, option haggling, and the payloads of options and their replies.
//!
//! Encoders append to a `Vec<u8>` that the caller reuses, or return a fixed-size array; decoders
//! borrow from the received bytes. NBD protocol, "Handshake".

mod greeting;
mod info;
mod meta;
mod option;
mod server;

pub use greeting::{ExportNameReply, Greeting, NEWSTYLE_GREETING_LENGTH, OLDSTYLE_GREETING_LENGTH};
pub use info::{BlockSizes, Info, InfoRequest, InfoTypes};
pub use meta::{MetaContextReply, MetaContextRequest, Queries};
pub use option::{
    OptionHeader, OptionReplyHeader, decode_export_name, encode_option, encode_option_error,
    encode_option_reply, error_message,
};
pub use server::ServerReply;
