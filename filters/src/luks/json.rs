//! The text of a LUKS2 header ("LUKS2 On-Disk Format Specification", 1.1.2, section 3), as far as
//! the filter needs it. Other fields are ignored.
//!
//! The text is hostile: it has at most 4 MiB, serde_json nests at most 128 deep, and lists and
//! objects have at most [`MOST`] entries here.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Entries of an object or a list: cryptsetup(8) has no more.
const MOST: usize = 32;

#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) keyslots: Objects<Keyslot>,
    pub(super) tokens: Objects<Token>,
    pub(super) segments: Objects<Segment>,
    pub(super) digests: Objects<Digest>,
    pub(super) config: Config,
}

/// 3.2. What other types than "luks2" do not have is optional.
#[derive(Deserialize)]
pub(super) struct Keyslot {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) key_size: Option<u32>,
    pub(super) area: Option<Area>,
    pub(super) kdf: Option<Kdf>,
    pub(super) af: Option<Splitter>,
    pub(super) priority: Option<u32>,
}

#[derive(Deserialize)]
pub(super) struct Area {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) offset: Number,
    pub(super) size: Number,
    pub(super) encryption: Option<String>,
    pub(super) key_size: Option<u32>,
}

#[derive(Deserialize)]
pub(super) struct Kdf {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) salt: String,
    /// Of pbkdf2.
    pub(super) hash: Option<String>,
    pub(super) iterations: Option<u32>,
    /// Of argon2i and argon2id.
    pub(super) time: Option<u32>,
    pub(super) memory: Option<u32>,
    pub(super) cpus: Option<u32>,
}

#[derive(Deserialize)]
pub(super) struct Splitter {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) stripes: Option<u32>,
    pub(super) hash: Option<String>,
}

/// 3.6.
#[derive(Deserialize)]
pub(super) struct Token {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) keyslots: List<Number>,
}

/// 3.3.
#[derive(Deserialize)]
pub(super) struct Segment {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) offset: Number,
    pub(super) size: String,
    pub(super) iv_tweak: Option<Number>,
    pub(super) encryption: Option<String>,
    pub(super) sector_size: Option<u32>,
    pub(super) integrity: Option<IgnoredAny>,
}

/// 3.4.
#[derive(Deserialize)]
pub(super) struct Digest {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) keyslots: List<Number>,
    pub(super) segments: List<Number>,
    pub(super) hash: Option<String>,
    pub(super) iterations: Option<u32>,
    pub(super) salt: String,
    pub(super) digest: String,
}

/// 3.5.
#[derive(Deserialize)]
pub(super) struct Config {
    pub(super) flags: Option<List<String>>,
    pub(super) requirements: Option<Requirements>,
}

#[derive(Deserialize)]
pub(super) struct Requirements {
    pub(super) mandatory: Option<List<String>>,
}

/// A number as a string: JSON's numbers are not exact beyond 53 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(pub(super) u64);

impl Number {
    pub(super) fn parse(text: &str) -> Option<Number> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map(Number)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Number, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number as a string")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
                Number::parse(text).ok_or_else(|| E::custom("not a number"))
            }
        }
        from.deserialize_str(Text)
    }
}

/// Objects by their numbers.
pub(super) struct Objects<T>(pub(super) BTreeMap<u64, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Objects<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Objects<T>, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Objects<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("objects by number")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Objects<T>, A::Error> {
                let mut objects = BTreeMap::new();
                while let Some((Number(number), object)) = map.next_entry()? {
                    if objects.len() == MOST || objects.insert(number, object).is_some() {
                        return Err(A::Error::custom("too many objects, or two with one number"));
                    }
                }
                Ok(Objects(objects))
            }
        }
        from.deserialize_map(Entries(PhantomData))
    }
}

/// Some items.
pub(super) struct List<T>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<List<T>, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    if list.len() == MOST {
                        return Err(A::Error::custom("too many items"));
                    }
                    list.push(item);
                }
                Ok(List(list))
            }
        }
        from.deserialize_seq(Items(PhantomData))
    }
}
