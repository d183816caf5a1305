//! The handshake phase, from the client's side.

use nbd_protocol::constants::{ClientFlags, HandshakeFlags, InfoType, Opt, RESERVED_ZEROES, Rep};
use nbd_protocol::handshake::{
    ExportNameReply, Greeting, Info, InfoRequest, MetaContextReply, MetaContextRequest,
    NEWSTYLE_GREETING_LENGTH, OptionReplyHeader, ServerReply, encode_option,
};

use super::answer::{InfoAnswer, ListAnswer, MetaAnswer, OptionReply};
use super::transport::Transport;
use super::{Client, Failure, Headers, Result};

impl<T: Transport> Client<T> {
    /// Receives a greeting of either style.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn greeting(&mut self) -> Result<Greeting> {
        let start: [u8; 16] = self.receive_array()?;
        let length = Greeting::length(&start)?;
        let rest = self.receive_rest((length - start.len()) as u64)?;
        if length == NEWSTYLE_GREETING_LENGTH {
            let mut whole = [0; NEWSTYLE_GREETING_LENGTH];
            whole[..16].copy_from_slice(&start);
            whole[16..].copy_from_slice(&rest);
            return Ok(Greeting::decode_newstyle(&whole)?);
        }
        let mut whole = [0; nbd_protocol::handshake::OLDSTYLE_GREETING_LENGTH];
        whole[..16].copy_from_slice(&start);
        whole[16..].copy_from_slice(&rest);
        if whole[28..].iter().any(|byte| *byte != 0) {
            return Err(Failure::Violation(
                "reserved bytes of the greeting are not zero".to_owned(),
            ));
        }
        let greeting = Greeting::decode_oldstyle(&whole)?;
        if let Greeting::Oldstyle { size, flags } = greeting {
            self.export = Some((size, flags));
        }
        Ok(greeting)
    }

    /// Answers a newstyle greeting.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn send_client_flags(&mut self, flags: ClientFlags) -> Result<()> {
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.send_raw(&flags.bits().to_be_bytes())
    }

    /// Receives a newstyle greeting and accepts all that the server offers.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn handshake(&mut self) -> Result<HandshakeFlags> {
        let Greeting::Newstyle { flags } = self.greeting()? else {
            return Err(Failure::Violation("an oldstyle greeting".to_owned()));
        };
        self.send_client_flags(ClientFlags::from_bits_truncate(u32::from(flags.bits())))?;
        Ok(flags)
    }

    /// Sends one option.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn send_option(&mut self, option: Opt, payload: &[u8]) -> Result<()> {
        let mut bytes = Vec::with_capacity(16 + payload.len());
        encode_option(&mut bytes, option, payload);
        self.send_raw(&bytes)
    }

    /// Receives one option reply.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn receive_option_reply(&mut self) -> Result<OptionReply> {
        let header = OptionReplyHeader::decode(&self.receive_array()?)?;
        let payload = self.receive_rest(u64::from(header.length))?;
        Ok(OptionReply { option: header.option, reply: header.reply, payload })
    }

    /// Sends an option and receives its replies up to the final one, which is the last of the list.
    ///
    /// # Errors
    /// Any [`Failure`]; a reply to another option, or an `NBD_REP_ACK` with a payload, is a
    /// violation.
    pub fn option(&mut self, option: Opt, payload: &[u8]) -> Result<Vec<OptionReply>> {
        self.send_option(option, payload)?;
        let mut replies = Vec::new();
        loop {
            let reply = self.receive_option_reply()?;
            if reply.option != option {
                return Err(Failure::Violation(format!("{option} answered as {}", reply.option)));
            }
            if reply.reply == Rep::ACK && !reply.payload.is_empty() {
                return Err(Failure::Violation("NBD_REP_ACK with a payload".to_owned()));
            }
            if reply.reply.is_error() && std::str::from_utf8(&reply.payload).is_err() {
                return Err(Failure::Violation("an error message that is not UTF-8".to_owned()));
            }
            let is_final = reply.reply == Rep::ACK || reply.reply.is_error();
            replies.push(reply);
            if is_final {
                return Ok(replies);
            }
        }
    }

    /// Sends an option that has one reply.
    ///
    /// # Errors
    /// Any [`Failure`]; more than one reply is a violation.
    pub fn simple_option(&mut self, option: Opt, payload: &[u8]) -> Result<OptionReply> {
        let (end, others) = split(self.option(option, payload)?)?;
        if others.is_empty() {
            return Ok(end);
        }
        Err(Failure::Violation(format!("{} replies to {option}", others.len() + 1)))
    }

    /// Asks for structured replies.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn structured_replies(&mut self) -> Result<OptionReply> {
        let end = self.simple_option(Opt::STRUCTURED_REPLY, &[])?;
        if end.reply == Rep::ACK {
            self.headers = Headers::Structured;
        }
        Ok(end)
    }

    /// Asks for extended headers.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn extended_headers(&mut self) -> Result<OptionReply> {
        let end = self.simple_option(Opt::EXTENDED_HEADERS, &[])?;
        if end.reply == Rep::ACK {
            self.headers = Headers::Extended;
        }
        Ok(end)
    }

    /// Asks for the list of exports.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn list(&mut self) -> Result<ListAnswer> {
        let (end, others) = split(self.option(Opt::LIST, &[])?)?;
        let mut exports = Vec::new();
        for reply in others {
            expect_reply(&reply, Rep::SERVER)?;
            let entry = ServerReply::decode(&reply.payload)?;
            exports.push((entry.name.to_owned(), entry.description.to_owned()));
        }
        Ok(ListAnswer { exports, end })
    }

    /// Asks about an export.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn info(&mut self, export: &str, infos: &[InfoType]) -> Result<InfoAnswer> {
        self.info_or_go(Opt::INFO, export, infos)
    }

    /// Asks about an export, and begins transmission if the server agrees.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn go(&mut self, export: &str, infos: &[InfoType]) -> Result<InfoAnswer> {
        let answer = self.info_or_go(Opt::GO, export, infos)?;
        if answer.end.reply == Rep::ACK {
            self.export = answer.export();
        }
        Ok(answer)
    }

    fn info_or_go(&mut self, option: Opt, export: &str, infos: &[InfoType]) -> Result<InfoAnswer> {
        let mut payload = Vec::new();
        InfoRequest::encode(&mut payload, export, infos);
        let (end, others) = split(self.option(option, &payload)?)?;
        let mut infos = Vec::new();
        for reply in others {
            expect_reply(&reply, Rep::INFO)?;
            infos.push(Info::decode(&reply.payload)?.into());
        }
        let answer = InfoAnswer { infos, end };
        if answer.end.reply == Rep::ACK && answer.export().is_none() {
            return Err(Failure::Violation(format!("{option} without NBD_INFO_EXPORT")));
        }
        Ok(answer)
    }

    /// Chooses an export the old way and begins transmission.
    ///
    /// # Errors
    /// Any [`Failure`]; reserved bytes that are not zero are a violation.
    pub fn export_name(&mut self, export: impl AsRef<[u8]>) -> Result<ExportNameReply> {
        self.send_option(Opt::EXPORT_NAME, export.as_ref())?;
        let reply = ExportNameReply::decode(&self.receive_array()?);
        if !self.no_zeroes {
            let reserved = self.receive_rest(RESERVED_ZEROES as u64)?;
            if reserved.iter().any(|byte| *byte != 0) {
                return Err(Failure::Violation("reserved bytes are not zero".to_owned()));
            }
        }
        self.export = Some((reply.size, reply.flags));
        Ok(reply)
    }

    /// Asks which metadata contexts there are.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub fn list_meta_context(&mut self, export: &str, queries: &[&str]) -> Result<MetaAnswer> {
        self.meta_context(Opt::LIST_META_CONTEXT, export, queries)
    }

    /// Chooses metadata contexts; those of an earlier choice are forgotten.
    ///
    /// # Errors
    /// Any [`Failure`]; contexts that share an id are a violation.
    pub fn set_meta_context(&mut self, export: &str, queries: &[&str]) -> Result<MetaAnswer> {
        self.contexts.clear();
        let answer = self.meta_context(Opt::SET_META_CONTEXT, export, queries)?;
        if answer.end.reply == Rep::ACK {
            self.contexts.clone_from(&answer.contexts);
        }
        Ok(answer)
    }

    fn meta_context(&mut self, option: Opt, export: &str, queries: &[&str]) -> Result<MetaAnswer> {
        let mut payload = Vec::new();
        MetaContextRequest::encode(&mut payload, export, queries);
        let (end, others) = split(self.option(option, &payload)?)?;
        let mut contexts: Vec<(u32, String)> = Vec::new();
        for reply in others {
            expect_reply(&reply, Rep::META_CONTEXT)?;
            let context = MetaContextReply::decode(&reply.payload)?;
            let repeated = contexts.iter().any(|(id, _)| *id == context.id);
            if repeated && option == Opt::SET_META_CONTEXT {
                return Err(Failure::Violation(format!("context id {} twice", context.id)));
            }
            contexts.push((context.id, context.name.to_owned()));
        }
        Ok(MetaAnswer { contexts, end })
    }

    /// Ends option haggling politely; the server may reply or close.
    ///
    /// # Errors
    /// Any [`Failure`] but [`Failure::Closed`].
    pub fn abort(&mut self) -> Result<Option<OptionReply>> {
        match self.simple_option(Opt::ABORT, &[]) {
            Ok(reply) => Ok(Some(reply)),
            Err(Failure::Closed) => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

fn split(mut replies: Vec<OptionReply>) -> Result<(OptionReply, Vec<OptionReply>)> {
    match replies.pop() {
        Some(end) => Ok((end, replies)),
        None => Err(Failure::Violation("no reply".to_owned())),
    }
}

fn expect_reply(reply: &OptionReply, expected: Rep) -> Result<()> {
    if reply.reply == expected {
        return Ok(());
    }
    Err(Failure::Violation(format!("{} in reply to {}", reply.reply, reply.option)))
}
