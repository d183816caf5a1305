//! What the text of a LUKS2 header means: which key slots open which segment of the disk ("LUKS2
//! On-Disk Format Specification", 1.1.2, section 3). What the filter does not have is refused with
//! one line.

use base64ct::{Base64, Encoding};
use nbdkit_api::{Error, Result};

use super::cipher::SECTOR;
use super::hash::Hash;
use super::header::{
    Area, Digest, Header, Kdf, MAX_STRIPES, Master, Slot, check_iterations, cipher_mode,
};
use super::json::{self, Metadata, Number};

/// Most memory of Argon2, KiB: what cryptsetup(8) can ask for, too.
pub(super) const MAX_MEMORY: u32 = 4 << 20;
/// Most blocks, of 1 KiB, that Argon2 computes for all slots of a disk: a few minutes of one
/// processor.
const MAX_WORK: u64 = 1 << 28;
/// Most lanes of Argon2: cryptsetup(8) makes 4.
const MAX_LANES: u32 = 16;
/// Bytes of a salt: 32 are usual, and Argon2 takes no less than 8.
const SALTS: std::ops::RangeInclusive<usize> = 8..=64;
/// Bytes of a digest: 20 are those of a disk that was converted from LUKS1.
const DIGESTS: std::ops::RangeInclusive<usize> = 20..=64;
/// Slots that a message explains.
const MOST_NOTES: usize = 4;
/// Characters of a name that a message shows.
const SHOWN: usize = 40;

/// Why a header is refused.
pub(super) fn bad(why: impl std::fmt::Display) -> Error {
    Error::msg(format!("bad LUKSv2 header: {why}"))
}

/// A name that the disk has, as a message may show it.
fn shown(name: &str) -> String {
    let escaped = name.escape_default().to_string();
    escaped.chars().take(SHOWN).collect()
}

fn not_supported(what: &str, name: &str) -> String {
    format!("the {what} \"{}\" is not supported", shown(name))
}

fn missing(what: &str) -> String {
    format!("{what} is missing")
}

fn hash(name: Option<&str>) -> Result<Hash, String> {
    let name = name.ok_or_else(|| missing("a hash"))?;
    Hash::by_name(name).ok_or_else(|| not_supported("hash", name))
}

fn bytes(
    what: &str,
    text: &str,
    sizes: std::ops::RangeInclusive<usize>,
) -> Result<Vec<u8>, String> {
    let decoded = Base64::decode_vec(text).ok().filter(|bytes| sizes.contains(&bytes.len()));
    decoded.ok_or_else(|| format!("a {what} is malformed, or too long or short"))
}

/// A cipher and its mode, "aes-xts-plain64", with a key of so many bytes.
fn cipher(encryption: Option<&str>, key_size: u32) -> Result<(super::cipher::Mode, usize), String> {
    let text = encryption.ok_or_else(|| missing("the encryption"))?;
    let (cipher, mode) = text.split_once('-').unwrap_or((text, ""));
    cipher_mode(&shown(cipher), &shown(mode), key_size)
}

/// Decodes the text of a header of which each copy has `copy` bytes, on a disk of `disk` bytes.
///
/// # Errors
/// EINVAL: it cannot be right, or needs what there is not.
pub(super) fn decode(text: &[u8], copy: u64, disk: u64) -> Result<Header> {
    // serde_json's message may have any text of the disk.
    let metadata: Metadata = serde_json::from_slice(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        bad(format_args!("the metadata is malformed at line {line}, column {column}"))
    })?;
    header(&metadata, copy, disk).map_err(bad)
}

fn header(metadata: &Metadata, copy: u64, disk: u64) -> Result<Header, String> {
    let config = &metadata.config;
    let required = config.requirements.as_ref().and_then(|it| it.mandatory.as_ref());
    if let Some(first) = required.and_then(|it| it.0.first()) {
        return Err(not_supported("requirement", first));
    }
    let segments = &metadata.segments.0;
    let (number, segment) = match segments.iter().next() {
        Some((number, segment)) if segments.len() == 1 => (Number(*number), segment),
        _ => return Err(format!("the disk has {} segments, not one", segments.len())),
    };
    let digest = metadata.digests.0.values().find(|it| it.segments.0.contains(&number));
    let digest = digest.ok_or("no key belongs to the segment")?;
    let slots = Slots::of(metadata, digest, 2 * copy, disk)?;
    let area = area(segment, slots.key_size, 2 * copy, disk)?;
    if slots.slots.iter().any(|(_, slot)| slot.material >= area.payload) {
        return Err("a key slot is in the segment".to_owned());
    }
    let may_trim = config
        .flags
        .as_ref()
        .is_some_and(|flags| flags.0.iter().any(|flag| flag == "allow-discards"));
    Ok(Header {
        master: Master { area, key_size: slots.key_size as usize, digest: decode_digest(digest)? },
        slots: slots.slots.into_iter().map(|(_, slot)| slot).collect(),
        note: slots.note,
        may_trim,
    })
}

fn decode_digest(digest: &json::Digest) -> Result<Digest, String> {
    if digest.kind != "pbkdf2" {
        return Err(not_supported("digest", &digest.kind));
    }
    let iterations = digest.iterations.ok_or_else(|| missing("the digest's iterations"))?;
    check_iterations(iterations)?;
    Ok(Digest {
        hash: hash(digest.hash.as_deref())?,
        iterations,
        salt: bytes("salt", &digest.salt, SALTS)?,
        digest: bytes("digest", &digest.digest, DIGESTS)?,
    })
}

/// The segment, which begins behind both copies of the header.
fn area(segment: &json::Segment, key_size: u32, from: u64, disk: u64) -> Result<Area, String> {
    if segment.kind != "crypt" {
        return Err(not_supported("segment", &segment.kind));
    }
    if segment.integrity.is_some() {
        return Err("the disk has integrity protection, which is not supported".to_owned());
    }
    let (mode, _) = cipher(segment.encryption.as_deref(), key_size)?;
    let sector = segment.sector_size.unwrap_or(SECTOR as u32);
    if !sector.is_power_of_two() || !(SECTOR as u32..=4096).contains(&sector) {
        return Err(format!("sectors of {sector} bytes"));
    }
    let Number(payload) = segment.offset;
    if payload > disk {
        return Err("payload offset points beyond the end of the disk".to_owned());
    }
    if payload < from {
        return Err("payload offset points into the header".to_owned());
    }
    let size = match segment.size.as_str() {
        "dynamic" => None,
        text => {
            let size = Number::parse(text)
                .map(|size| size.0)
                .filter(|size| size.is_multiple_of(sector.into()) && *size <= disk - payload);
            Some(size.ok_or("the size of the segment is malformed, or beyond the disk's")?)
        }
    };
    let tweak = segment.iv_tweak.map_or(0, |tweak| tweak.0);
    Ok(Area { mode, sector: sector as usize, tweak, payload, size })
}

/// The key slots of a segment.
struct Slots {
    /// Bytes of the key that is in them.
    key_size: u32,
    /// With their priorities, in the order in which they are tried.
    slots: Vec<(u32, Slot)>,
    note: Option<String>,
}

impl Slots {
    /// Those that belong to a digest, between `from` and the end of the disk.
    fn of(
        metadata: &Metadata,
        digest: &json::Digest,
        from: u64,
        disk: u64,
    ) -> Result<Slots, String> {
        let (mut slots, mut notes) = (Vec::new(), Vec::new());
        let mut sizes = Vec::new();
        for (number, keyslot) in &metadata.keyslots.0 {
            if !digest.keyslots.0.contains(&Number(*number)) {
                notes.push(format!("key slot {number} belongs to no segment"));
                continue;
            }
            match slot(keyslot, from, disk) {
                Ok(None) => notes.push(format!("key slot {number} is to be ignored")),
                Ok(Some((priority, size, slot))) => {
                    let token = metadata
                        .tokens
                        .0
                        .values()
                        .find(|token| token.keyslots.0.contains(&Number(*number)));
                    if let Some(token) = token {
                        let kind = shown(&token.kind);
                        notes.push(format!("key slot {number} is that of a token, \"{kind}\""));
                    }
                    sizes.push(size);
                    slots.push((priority, slot));
                }
                Err(why) => notes.push(format!("key slot {number}: {why}")),
            }
        }
        notes.truncate(MOST_NOTES);
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        let Some(key_size) = sizes.first().copied() else {
            let why = note.unwrap_or_else(|| "it has none".to_owned());
            return Err(format!("no key slot can be opened with a passphrase: {why}"));
        };
        if sizes.iter().any(|size| *size != key_size) {
            return Err("key slots have keys of different sizes".to_owned());
        }
        let work = slots.iter().map(|(_, slot): &(_, Slot)| match slot.kdf {
            Kdf::Argon2 { passes, memory, .. } => u64::from(passes) * u64::from(memory),
            Kdf::Pbkdf2 { .. } => 0,
        });
        if work.sum::<u64>() > MAX_WORK {
            return Err("the passes of Argon2 would take hours".to_owned());
        }
        // Those with the highest priority first, the others in their order.
        slots.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
        Ok(Slots { key_size, slots, note })
    }
}

/// Decodes a key slot: its priority, the bytes of the key that it has, and itself. `None`: it is
/// to be ignored.
fn slot(keyslot: &json::Keyslot, from: u64, disk: u64) -> Result<Option<(u32, u32, Slot)>, String> {
    if keyslot.kind != "luks2" {
        return Err(not_supported("type", &keyslot.kind));
    }
    let priority = keyslot.priority.unwrap_or(1);
    if priority == 0 {
        return Ok(None);
    }
    let size = keyslot.key_size.filter(|size| (1..=64).contains(size));
    let size = size.ok_or("the size of the key is wrong")?;
    let area = keyslot.area.as_ref().ok_or_else(|| missing("the area"))?;
    if area.kind != "raw" {
        return Err(not_supported("area", &area.kind));
    }
    let (mode, key_size) = cipher(area.encryption.as_deref(), area.key_size.unwrap_or(0))?;
    let af = keyslot.af.as_ref().ok_or_else(|| missing("the splitter"))?;
    if af.kind != "luks1" {
        return Err(not_supported("splitter", &af.kind));
    }
    let stripes = af.stripes.filter(|stripes| (1..=MAX_STRIPES).contains(stripes));
    let stripes = stripes.ok_or("the number of stripes is wrong")?;
    let length = (u64::from(size) * u64::from(stripes)).next_multiple_of(SECTOR);
    let Number(material) = area.offset;
    let end = material.checked_add(length).filter(|end| *end <= disk && material >= from);
    if end.is_none() || length > area.size.0 {
        return Err("it points beyond the end of the disk, or into the header".to_owned());
    }
    let kdf = keyslot.kdf.as_ref().ok_or_else(|| missing("the key derivation function"))?;
    let slot = Slot {
        salt: bytes("salt", &kdf.salt, SALTS)?,
        kdf: decode_kdf(kdf)?,
        mode,
        key_size,
        material,
        stripes,
        hash: hash(af.hash.as_deref())?,
    };
    Ok(Some((priority, size, slot)))
}

fn decode_kdf(kdf: &json::Kdf) -> Result<Kdf, String> {
    let algorithm = match kdf.kind.as_str() {
        "pbkdf2" => {
            let iterations = kdf.iterations.ok_or_else(|| missing("the number of iterations"))?;
            check_iterations(iterations)?;
            return Ok(Kdf::Pbkdf2 { hash: hash(kdf.hash.as_deref())?, iterations });
        }
        "argon2i" => argon2::Algorithm::Argon2i,
        "argon2id" => argon2::Algorithm::Argon2id,
        other => return Err(not_supported("key derivation function", other)),
    };
    let passes = kdf.time.filter(|passes| *passes > 0).ok_or("Argon2 has no pass")?;
    let lanes = kdf.cpus.filter(|lanes| (1..=MAX_LANES).contains(lanes));
    let lanes = lanes.ok_or_else(|| format!("Argon2 has 1 to {MAX_LANES} lanes"))?;
    let memory = kdf.memory.unwrap_or(0);
    if memory > MAX_MEMORY || memory < 8 * lanes {
        let most = MAX_MEMORY >> 20;
        return Err(format!("{memory} KiB of memory for Argon2, where {most} GiB are allowed"));
    }
    if u64::from(passes) * u64::from(memory) > MAX_WORK {
        return Err(format!("{passes} passes of Argon2 over {memory} KiB would take hours"));
    }
    Ok(Kdf::Argon2 { algorithm, passes, memory, lanes })
}
