//! The transmission phase, from the client's side: requests out, replies back in whatever order
//! they come.

use nbd_protocol::constants::{
    Command, CommandFlags, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use nbd_protocol::transmission::{
    BlockStatusPayload, ExtendedReplyChunk, Request, SimpleReply, StructuredReplyChunk,
};

use super::assembly::{Assembly, Reply};
use super::transport::Transport;
use super::{Client, Failure, Headers, Result};

/// One request that a client can make, without the cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What to do.
    pub command: Command,
    /// Flags; `NBD_CMD_FLAG_PAYLOAD_LEN` is added where the protocol wants it.
    pub flags: CommandFlags,
    /// First byte.
    pub offset: u64,
    /// Bytes of effect, or of payload.
    pub length: u64,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Ask {
    /// A request without flags or payload.
    #[must_use]
    pub fn new(command: Command, offset: u64, length: u64) -> Ask {
        Ask { command, flags: CommandFlags::empty(), offset, length, payload: Vec::new() }
    }

    /// Reads `length` bytes.
    #[must_use]
    pub fn read(offset: u64, length: u64) -> Ask {
        Ask::new(Command::READ, offset, length)
    }

    /// Writes these bytes.
    #[must_use]
    pub fn write(offset: u64, data: impl Into<Vec<u8>>) -> Ask {
        let payload = data.into();
        Ask { payload: payload.clone(), ..Ask::new(Command::WRITE, offset, payload.len() as u64) }
    }

    /// Flushes.
    #[must_use]
    pub fn flush() -> Ask {
        Ask::new(Command::FLUSH, 0, 0)
    }

    /// Discards.
    #[must_use]
    pub fn trim(offset: u64, length: u64) -> Ask {
        Ask::new(Command::TRIM, offset, length)
    }

    /// Prefetches.
    #[must_use]
    pub fn cache(offset: u64, length: u64) -> Ask {
        Ask::new(Command::CACHE, offset, length)
    }

    /// Writes zeroes.
    #[must_use]
    pub fn write_zeroes(offset: u64, length: u64) -> Ask {
        Ask::new(Command::WRITE_ZEROES, offset, length)
    }

    /// Asks for block status in every selected context.
    #[must_use]
    pub fn block_status(offset: u64, length: u64) -> Ask {
        Ask::new(Command::BLOCK_STATUS, offset, length)
    }

    /// Asks for block status in some of the selected contexts; needs extended headers.
    #[must_use]
    pub fn block_status_in(offset: u64, length: u64, contexts: &[u32]) -> Ask {
        let mut payload = Vec::new();
        BlockStatusPayload::encode(&mut payload, length, contexts);
        Ask {
            flags: CommandFlags::PAYLOAD_LEN,
            payload: payload.clone(),
            ..Ask::new(Command::BLOCK_STATUS, offset, payload.len() as u64)
        }
    }

    /// The same with more flags.
    #[must_use]
    pub fn flags(mut self, flags: CommandFlags) -> Ask {
        self.flags |= flags;
        self
    }
}

impl<T: Transport> Client<T> {
    /// Sends a request and returns its cookie. Replies may come in any order: see
    /// [`receive`](Self::receive).
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn send(&mut self, ask: &Ask) -> Result<u64> {
        let mut flags = ask.flags;
        if self.headers == Headers::Extended && ask.command == Command::WRITE {
            flags |= CommandFlags::PAYLOAD_LEN;
        }
        let cookie = self.cookie();
        let request =
            Request { flags, command: ask.command, cookie, offset: ask.offset, length: ask.length };
        self.send_request(&request, &ask.payload)?;
        Ok(cookie)
    }

    /// A cookie that no request has used yet.
    pub fn cookie(&mut self) -> u64 {
        self.next_cookie += 1;
        self.next_cookie
    }

    /// Sends a header and payload as they are, in the negotiated form, and expects a reply to the
    /// cookie.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn send_request(&mut self, request: &Request, payload: &[u8]) -> Result<()> {
        self.expect_reply_to(request, payload);
        let mut bytes = match self.headers {
            Headers::Extended => request.encode_extended().to_vec(),
            Headers::Simple | Headers::Structured => request.encode().to_vec(),
        };
        bytes.extend_from_slice(payload);
        self.send_raw(&bytes)
    }

    /// Notes a request that was, or will be, sent by [`send_raw`](Self::send_raw).
    pub fn expect_reply_to(&mut self, request: &Request, payload: &[u8]) {
        let mut contexts: Vec<u32> = self.contexts.iter().map(|(id, _)| *id).collect();
        let mut length = request.length;
        let narrowed = request.command == Command::BLOCK_STATUS
            && request.flags.contains(CommandFlags::PAYLOAD_LEN);
        if let Ok(payload) = BlockStatusPayload::decode(payload)
            && narrowed
        {
            length = payload.effect_length;
            contexts = payload.ids.collect();
        }
        let assembly = Assembly::new(*request, length, self.headers, contexts);
        self.outstanding.insert(request.cookie, assembly);
    }

    /// Receives messages until one outstanding request is answered completely.
    ///
    /// # Errors
    /// Any [`Failure`]; an answer to no request of ours is a violation.
    pub fn receive(&mut self) -> Result<Reply> {
        loop {
            let magic: [u8; 4] = self.receive_array()?;
            let reply = match u32::from_be_bytes(magic) {
                SIMPLE_REPLY_MAGIC => Some(self.receive_simple(magic)?),
                STRUCTURED_REPLY_MAGIC => self.receive_structured(magic)?,
                EXTENDED_REPLY_MAGIC => self.receive_extended(magic)?,
                other => {
                    return Err(Failure::Violation(format!("{other:#x} is no reply's magic")));
                }
            };
            if let Some(reply) = reply {
                return Ok(reply);
            }
        }
    }

    /// Sends a request and receives its reply, with nothing else outstanding.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn call(&mut self, ask: &Ask) -> Result<Reply> {
        let cookie = self.send(ask)?;
        let reply = self.receive()?;
        if reply.cookie != cookie {
            return Err(Failure::Violation(format!(
                "{:#x} answered instead of {cookie:#x}",
                reply.cookie
            )));
        }
        Ok(reply)
    }

    /// Says goodbye; there is no reply.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn disconnect(&mut self) -> Result<()> {
        let cookie = self.cookie();
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::DISC,
            cookie,
            offset: 0,
            length: 0,
        };
        self.send_request(&request, &[])?;
        self.outstanding.remove(&cookie);
        Ok(())
    }

    fn header<const N: usize>(&mut self, magic: [u8; 4]) -> Result<[u8; N]> {
        let rest = self.receive_rest((N - magic.len()) as u64)?;
        let mut header = [0; N];
        header[..4].copy_from_slice(&magic);
        header[4..].copy_from_slice(&rest);
        Ok(header)
    }

    fn receive_simple(&mut self, magic: [u8; 4]) -> Result<Reply> {
        let header = SimpleReply::decode(&self.header(magic)?)?;
        let assembly = self.take(header.cookie)?;
        let data = match assembly.simple_payload(header.error)? {
            0 => Vec::new(),
            length => self.receive_rest(length)?,
        };
        Ok(assembly.finish_simple(header.error, data))
    }

    fn receive_structured(&mut self, magic: [u8; 4]) -> Result<Option<Reply>> {
        let header = StructuredReplyChunk::decode(&self.header(magic)?)?;
        let mut assembly = self.take(header.cookie)?;
        if self.headers != Headers::Structured {
            return Err(Failure::Violation("a structured reply was not negotiated".to_owned()));
        }
        let payload = self.receive_rest(u64::from(header.length))?;
        if assembly.add(header.flags, header.chunk_type, &payload)? {
            return Ok(Some(assembly.finish()?));
        }
        self.outstanding.insert(header.cookie, assembly);
        Ok(None)
    }

    fn receive_extended(&mut self, magic: [u8; 4]) -> Result<Option<Reply>> {
        let header = ExtendedReplyChunk::decode(&self.header(magic)?)?;
        let mut assembly = self.take(header.cookie)?;
        if self.headers != Headers::Extended {
            return Err(Failure::Violation("an extended reply was not negotiated".to_owned()));
        }
        if header.offset != assembly.request().offset {
            return Err(Failure::Violation(format!(
                "offset {} in the reply to a request at {}",
                header.offset,
                assembly.request().offset
            )));
        }
        let payload = self.receive_rest(header.length)?;
        if assembly.add(header.flags, header.chunk_type, &payload)? {
            return Ok(Some(assembly.finish()?));
        }
        self.outstanding.insert(header.cookie, assembly);
        Ok(None)
    }

    fn take(&mut self, cookie: u64) -> Result<Assembly> {
        self.outstanding.remove(&cookie).ok_or_else(|| {
            Failure::Violation(format!("a reply to {cookie:#x}, which was not asked"))
        })
    }
}
