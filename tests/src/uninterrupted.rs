//! System calls that a signal ends.

use std::io::{self, ErrorKind};

/// Makes a call again that a signal has ended.
///
/// A receive with a timeout ends with EINTR where another would go on by itself, even if no signal
/// is handled (signal(7)): the test was stopped for a moment, or a child of another test ended
/// while the first thread had its signals blocked, as it has while it starts a thread.
///
/// # Errors
/// The call's, but not that one.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_signal_has_ended_is_called_again() {
        let mut outcomes = vec![Ok(1), Err(ErrorKind::Interrupted), Err(ErrorKind::Interrupted)];
        let result =
            uninterrupted(|| outcomes.pop().expect("no more calls").map_err(io::Error::from));
        assert_eq!((result.expect("a result"), outcomes.len()), (1, 0));
        let error = uninterrupted(|| Err::<(), _>(io::Error::from(ErrorKind::WouldBlock)));
        assert_eq!(error.expect_err("an error").kind(), ErrorKind::WouldBlock);
    }
}
