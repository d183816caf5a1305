//! Texts of errors, as nbdkit's messages end with them.

use std::io;

use nix::errno::Errno;

/// The C library's text for an errno, strerror(3). The texts of nix are not always the C library's.
pub fn strerror(errno: Errno) -> String {
    errno_text(&errno.into())
}

/// The text of an error: strerror(3)'s for one of the system, without the number that std adds.
pub fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => text.trim_end_matches(&format!(" (os error {number})")).to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_texts_are_those_of_the_c_library() {
        assert_eq!(strerror(Errno::EBADF), "Bad file descriptor");
        let not_found = io::Error::from(Errno::ENOENT);
        assert_eq!(errno_text(&not_found), "No such file or directory");
        assert_eq!(errno_text(&io::Error::other("own")), "own");
    }
}
