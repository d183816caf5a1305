//! For the fuzz targets: the data format without what reaches outside.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::OsString;

use nbdkit_api::Result;

use super::{eval, parser};

/// How much of an image is read back, bytes.
const HEAD: u64 = 1 << 16;

/// Parses `text` and evaluates it with `parameters`; the image's size and first bytes.
/// What would open a file, run a script or read the environment is parsed only: `None`.
///
/// # Errors
/// Those of the data parameter.
///
/// # Panics
/// If the image contradicts itself.
pub fn image(
    text: &[u8],
    parameters: &HashMap<String, OsString>,
) -> Result<Option<(u64, Vec<u8>)>> {
    parser::parse(text)?;
    let texts = parameters.values().map(|value| value.as_encoded_bytes());
    if texts.chain([text]).any(|text| text.contains(&b'<'))
        || std::env::vars_os().any(|(_, value)| value.as_encoded_bytes().contains(&b'<'))
    {
        return Ok(None);
    }
    let image = eval::evaluate(text, parameters)?;
    let _ = image.cost();
    let mut head = vec![0; image.size().min(HEAD) as usize];
    image.read(&mut head, 0)?;
    let first = head.iter().position(|byte| *byte != 0).map(|at| at as u64);
    let told = image.next_data(0);
    if let Some(first) = first {
        assert!(told.is_some_and(|told| told <= first), "{told:?} is beyond byte {first}");
    }
    assert!(told.is_none_or(|told| told < image.size()), "{told:?} is beyond the end");
    Ok(Some((image.size(), head)))
}
