//! The transmission phase: requests, the three forms of reply header, and the payloads of reply
//! chunks.
//!
//! Headers are fixed-size arrays, so that they can be on the stack and be sent in one write with
//! the data. NBD protocol, "Transmission".

mod chunk;
mod reply;
mod request;
mod status;

pub use chunk::{DataChunk, ErrorChunk, HoleChunk};
pub use reply::{ExtendedReplyChunk, SimpleReply, StructuredReplyChunk};
pub use request::{BlockStatusPayload, ContextIds, Request};
pub use status::{
    BlockDescriptor, BlockDescriptorExt, BlockStatus, BlockStatusExt, Descriptors, DescriptorsExt,
};
