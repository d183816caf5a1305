//! The list that `.list_exports` fills and NBD_OPT_LIST sends. nbdkit-plugin(3), `.list_exports`.

use crate::error::{Errno, Error, Result};

/// Most exports that a list may have.
pub const MAX_EXPORTS: usize = 10_000;
/// Longest name or description, in bytes (NBD protocol, "Values": strings).
pub const MAX_STRING: usize = 4096;

/// One export: its name and, if there is one, a description for humans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// UTF-8, at most [`MAX_STRING`] bytes.
    pub name: String,
    /// UTF-8, at most [`MAX_STRING`] bytes.
    pub description: Option<String>,
}

/// A list of exports in the order in which they were added.
#[derive(Debug, Clone, Default)]
pub struct Exports {
    list: Vec<Export>,
    use_default: bool,
}

impl Exports {
    /// An empty list.
    pub fn new() -> Exports {
        Exports::default()
    }

    /// Adds an export.
    ///
    /// # Errors
    /// EINVAL if there are [`MAX_EXPORTS`] already or a string is too long.
    pub fn add(&mut self, name: impl Into<String>, description: Option<String>) -> Result<()> {
        let name = name.into();
        if self.list.len() >= MAX_EXPORTS {
            return Err(Error::new(Errno::EINVAL, "nbdkit_add_export: too many exports"));
        }
        if name.len() > MAX_STRING || description.as_ref().is_some_and(|d| d.len() > MAX_STRING) {
            return Err(Error::new(
                Errno::EINVAL,
                "nbdkit_add_export: export name or description too long",
            ));
        }
        self.list.push(Export { name, description });
        Ok(())
    }

    /// Asks the server to add the plugin's default export at the end (`nbdkit_use_default_export`).
    pub fn use_default(&mut self) {
        self.use_default = true;
    }

    /// Whether [`use_default`](Self::use_default) was called since the last call of this.
    pub fn take_use_default(&mut self) -> bool {
        std::mem::take(&mut self.use_default)
    }

    /// The exports added so far.
    pub fn iter(&self) -> std::slice::Iter<'_, Export> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl<'a> IntoIterator for &'a Exports {
    type Item = &'a Export;
    type IntoIter = std::slice::Iter<'a, Export>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_longer_than_the_protocol_allows_are_refused() {
        let mut exports = Exports::new();
        assert!(exports.add("x".repeat(MAX_STRING), None).is_ok());
        assert!(exports.add("x".repeat(MAX_STRING + 1), None).is_err());
        assert_eq!(exports.len(), 1);
    }
}
