//! `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: the request and
//! `NBD_REP_META_CONTEXT`.

use crate::Malformed;
use crate::wire::{Reader, bounded, put_length, put_string, string};

/// The payload of both meta context options: export name, number of queries, queries; each string
/// with its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContextRequest<'a> {
    /// The export whose contexts are listed or set.
    pub export: &'a str,
    /// Queries such as `base:allocation`, in the client's order. An empty list means every context
    /// for `NBD_OPT_LIST_META_CONTEXT`, and no context for `NBD_OPT_SET_META_CONTEXT`.
    pub queries: Queries<'a>,
}

impl<'a> MetaContextRequest<'a> {
    /// Decodes a payload. All queries are checked to be in bounds and at most 4096 bytes before the
    /// first is returned; their text is not, because a query in an unknown namespace must be
    /// ignored, valid text or not.
    ///
    /// # Errors
    /// [`Malformed`] if a length disagrees with the payload's: reply with `NBD_REP_ERR_INVALID`.
    ///
    /// NBD protocol, `NBD_OPT_LIST_META_CONTEXT`.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("meta context request", payload);
        let export = reader.string("export name")?;
        let count = reader.u32()?;
        let queries = Queries { left: count, bytes: reader.clone().rest() };
        for _ in 0..count {
            let length = reader.string_length("meta context query")?;
            reader.bytes(length)?;
        }
        reader.finish()?;
        Ok(MetaContextRequest { export, queries })
    }

    /// Appends a payload, for clients.
    pub fn encode(buf: &mut Vec<u8>, export: &str, queries: &[&str]) {
        put_string(buf, export);
        put_length(buf, queries.len());
        for query in queries {
            put_string(buf, query);
        }
    }
}

/// The queries of a [`MetaContextRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queries<'a> {
    left: u32,
    bytes: &'a [u8],
}

impl<'a> Iterator for Queries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        // decode() has checked the length of every query.
        let (length, rest) = self.bytes.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (query, rest) = rest.split_at_checked(length)?;
        self.bytes = rest;
        Some(query)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Queries<'_> {}

/// The payload of `NBD_REP_META_CONTEXT`: 32 bits of id, the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaContextReply<'a> {
    /// Names the context in block status replies; zero in replies to `NBD_OPT_LIST_META_CONTEXT`.
    pub id: u32,
    /// The context, such as `base:allocation`.
    pub name: &'a str,
}

impl<'a> MetaContextReply<'a> {
    /// Appends a payload; the name is cut at 4096 bytes.
    pub fn encode(&self, buf: &mut Vec<u8>) {
        buf.extend_from_slice(&self.id.to_be_bytes());
        buf.extend_from_slice(bounded(self.name).as_bytes());
    }

    /// Decodes a payload, for clients.
    ///
    /// # Errors
    /// [`Malformed`] if the id is truncated or the name is not a string.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("meta context reply", payload);
        let id = reader.u32()?;
        let name = string("meta context name", reader.rest())?;
        Ok(MetaContextReply { id, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_has_its_golden_bytes() {
        let mut buf = Vec::new();
        MetaContextRequest::encode(&mut buf, "e", &["base:allocation", ""]);
        assert_eq!(buf, b"\0\0\0\x01e\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\0");
        let request = MetaContextRequest::decode(&buf).unwrap();
        assert_eq!(request.export, "e");
        assert_eq!(request.queries.len(), 2);
        assert_eq!(request.queries.collect::<Vec<_>>(), [b"base:allocation".as_slice(), b""]);
    }

    #[test]
    fn every_length_in_a_request_must_agree_with_the_payload() {
        let mut good = Vec::new();
        MetaContextRequest::encode(&mut good, "disk", &["base:", "x-y:z"]);
        for cut in 0..good.len() {
            assert!(MetaContextRequest::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        good.push(0);
        assert_eq!(
            MetaContextRequest::decode(&good),
            Err(Malformed::Trailing { what: "meta context request", extra: 1 })
        );
    }

    #[test]
    fn a_count_of_four_billion_queries_fails_at_the_first_missing_one() {
        assert_eq!(
            MetaContextRequest::decode(b"\0\0\0\0\xff\xff\xff\xff"),
            Err(Malformed::Truncated { what: "meta context request", needed: 4, available: 0 })
        );
    }

    #[test]
    fn a_query_longer_than_4096_bytes_is_refused() {
        assert_eq!(
            MetaContextRequest::decode(b"\0\0\0\0\0\0\0\x01\0\0\x10\x01"),
            Err(Malformed::TooLong { what: "meta context query", limit: 4096, found: 4097 })
        );
    }

    #[test]
    fn reply_has_its_golden_bytes() {
        let reply = MetaContextReply { id: 1, name: "base:allocation" };
        let mut buf = Vec::new();
        reply.encode(&mut buf);
        assert_eq!(buf, b"\0\0\0\x01base:allocation");
        assert_eq!(MetaContextReply::decode(&buf), Ok(reply));
        assert!(MetaContextReply::decode(&buf[..3]).is_err());
    }
}
