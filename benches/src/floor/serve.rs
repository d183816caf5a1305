//! One client of the floor: the shortest handshake and the loop.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use nbd_protocol::constants::{
    ChunkType, Command, HandshakeFlags, Opt, Rep, ReplyFlags, TransmissionFlags,
};
use nbd_protocol::handshake::{Greeting, Info, OptionHeader, encode_option_reply};
use nbd_protocol::transmission::{DataChunk, Request, SimpleReply, StructuredReplyChunk};

use crate::client::Stream;
use crate::failure::Failure;

/// Requests that one receive can take.
const IN: usize = 1 << 20;
/// Replies that one send can carry.
const OUT: usize = 1 << 20;

/// Serves one client until it hangs up. `file` is what there is; without it, zeroes.
pub(super) fn serve(mut stream: Stream, size: u64, file: Option<&File>) -> Result<(), Failure> {
    let structured = handshake(&mut stream, size)?;
    let mut floor = Loop { stream, file, structured, out: vec![0; OUT], pending: 0 };
    let mut input = vec![0; IN];
    let mut have = 0;
    loop {
        let length = floor.stream.read(&mut input[have..])?;
        if length == 0 {
            return Ok(());
        }
        have += length;
        let mut at = 0;
        while let Some(header) = input[at..have].first_chunk() {
            let request = Request::decode(header)?;
            at += Request::LENGTH;
            match request.command {
                Command::WRITE => {
                    let length = usize::try_from(request.length).unwrap_or(usize::MAX);
                    if length > IN {
                        return Ok(());
                    }
                    if at + length > IN {
                        input.copy_within(at..have, 0);
                        (at, have) = (0, have - at);
                    }
                    if have < at + length {
                        floor.stream.read_exact(&mut input[have..at + length])?;
                        have = at + length;
                    }
                    floor.write(&request, &input[at..at + length])?;
                    at += length;
                }
                Command::READ => floor.read(&request)?,
                Command::FLUSH => floor.acknowledge(&request)?,
                _ => return Ok(()),
            }
        }
        input.copy_within(at..have, 0);
        have -= at;
        floor.send()?;
    }
}

/// The replies of one client.
struct Loop<'a> {
    stream: Stream,
    file: Option<&'a File>,
    structured: bool,
    out: Vec<u8>,
    /// Bytes of `out` that wait to be sent.
    pending: usize,
}

impl Loop<'_> {
    fn read(&mut self, request: &Request) -> Result<(), Failure> {
        let length = usize::try_from(request.length).unwrap_or(usize::MAX).min(OUT / 2);
        if self.pending + length + 64 > OUT {
            self.send()?;
        }
        if self.structured {
            let chunk = StructuredReplyChunk {
                flags: ReplyFlags::DONE,
                chunk_type: ChunkType::OFFSET_DATA,
                cookie: request.cookie,
                length: u32::try_from(length + 8).unwrap_or(0),
            };
            self.put(&chunk.encode());
            self.put(&DataChunk::encode_prefix(request.offset));
        } else {
            self.put(&SimpleReply { error: 0, cookie: request.cookie }.encode());
        }
        let data = &mut self.out[self.pending..self.pending + length];
        match self.file {
            Some(file) => file.read_exact_at(data, request.offset)?,
            None => data.fill(0),
        }
        self.pending += length;
        Ok(())
    }

    fn write(&mut self, request: &Request, data: &[u8]) -> Result<(), Failure> {
        if let Some(file) = self.file {
            file.write_all_at(data, request.offset)?;
        }
        self.acknowledge(request)
    }

    fn acknowledge(&mut self, request: &Request) -> Result<(), Failure> {
        if self.pending + 64 > OUT {
            self.send()?;
        }
        self.put(&SimpleReply { error: 0, cookie: request.cookie }.encode());
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out[self.pending..self.pending + bytes.len()].copy_from_slice(bytes);
        self.pending += bytes.len();
    }

    fn send(&mut self) -> Result<(), Failure> {
        self.stream.write_all(&self.out[..self.pending])?;
        self.pending = 0;
        Ok(())
    }
}

/// Agrees to structured replies and to `NBD_OPT_GO`, and to nothing else. Returns whether replies
/// are structured.
fn handshake(stream: &mut Stream, size: u64) -> Result<bool, Failure> {
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    stream.write_all(&Greeting::encode_newstyle(flags))?;
    stream.read_exact(&mut [0; 4])?;
    let mut structured = false;
    loop {
        let mut header = [0; OptionHeader::LENGTH];
        stream.read_exact(&mut header)?;
        let header = OptionHeader::decode(&header)?;
        let mut payload = vec![0; usize::try_from(header.length.min(65536)).unwrap_or(0)];
        stream.read_exact(&mut payload)?;
        let mut out = Vec::new();
        match header.option {
            Opt::STRUCTURED_REPLY => {
                structured = true;
                encode_option_reply(&mut out, header.option, Rep::ACK, &[]);
            }
            Opt::GO => {
                let flags = TransmissionFlags::HAS_FLAGS
                    | TransmissionFlags::SEND_FLUSH
                    | TransmissionFlags::CAN_MULTI_CONN;
                let mut info = Vec::new();
                Info::Export { size, flags }.encode(&mut info);
                encode_option_reply(&mut out, header.option, Rep::INFO, &info);
                encode_option_reply(&mut out, header.option, Rep::ACK, &[]);
            }
            option => encode_option_reply(&mut out, option, Rep::ERR_UNSUP, &[]),
        }
        stream.write_all(&out)?;
        if header.option == Opt::GO {
            return Ok(structured);
        }
    }
}
