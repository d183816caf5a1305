//! Parsers for parameter values: `nbdkit_parse_size`, `_bool`, `_int`…, `_delay`, `_probability`,
//! and the password forms. Runs in the template while it is configured; the texts come from
//! the command line. Sources: nbdkit-plugin(3), "Parsing command line parameters".

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nbdkit_common::numbers::{self, Float};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

use crate::error::{Error, Result, ResultExt};
use crate::inherited;
pub use nbdkit_common::numbers::Bounded;

/// Parses a size in bytes: decimal digits and an optional suffix `b k m g t p e` (powers of 1024,
/// either case) or `s` (512 byte sectors). The result is at most `i64::MAX`.
///
/// # Errors
/// What is wrong with `text`, in nbdkit's words.
pub fn size(text: &str) -> Result<u64> {
    let trimmed = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, rest) = match trimmed.as_bytes().first() {
        Some(b'-') => (true, &trimmed[1..]),
        Some(b'+') => (false, &trimmed[1..]),
        _ => (false, trimmed),
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(Error::msg(format!("could not parse size string: {text}")));
    }
    let too_big = || Error::msg(format!("size exceeds maximum value: {text}"));
    let number: u64 = rest[..digits].parse().map_err(|_| too_big())?;
    if negative && number != 0 {
        return Err(Error::msg(format!("size cannot be negative: {text}")));
    }
    let suffix = &rest[digits..];
    let scale: u64 = match suffix.as_bytes() {
        [] | [b'b' | b'B'] => 1,
        [b's' | b'S'] => 512,
        [b'k' | b'K'] => 1 << 10,
        [b'm' | b'M'] => 1 << 20,
        [b'g' | b'G'] => 1 << 30,
        [b't' | b'T'] => 1 << 40,
        [b'p' | b'P'] => 1 << 50,
        [b'e' | b'E'] => 1 << 60,
        _ => return Err(Error::msg(format!("could not parse size: unknown suffix: {suffix}"))),
    };
    if number > i64::MAX as u64 {
        return Err(too_big());
    }
    match number.checked_mul(scale) {
        Some(bytes) if bytes <= i64::MAX as u64 => Ok(bytes),
        _ => Err(Error::msg(format!("could not parse size: size * scale overflows: {text}"))),
    }
}

/// Parses a boolean, see [`numbers::boolean`].
///
/// # Errors
/// `could not decipher boolean (TEXT)`.
pub fn boolean(text: &str) -> Result<bool> {
    numbers::boolean(text.as_ref()).map_err(Error::msg)
}

/// Parses a number of any integer type, see [`numbers::integer`]; `what` names the parameter in
/// messages.
///
/// # Errors
/// Empty, trailing garbage, negative for an unsigned type, or out of range.
pub fn integer<T: Bounded>(what: &str, text: &str) -> Result<T> {
    numbers::integer(what, text.as_ref()).map_err(Error::msg)
}

/// Parses a delay, see [`numbers::delay`]. `nbdkit_parse_delay`, nbdkit 1.40.
///
/// # Errors
/// `WHAT: could not parse delay or sleep: "TEXT"`.
pub fn delay(what: &str, text: &str) -> Result<Duration> {
    numbers::delay(what, text.as_ref()).map_err(Error::msg)
}

/// Parses a probability: `0.1`, `1e-8`, `10%`, `N:M` or `N/M`. The result may exceed 1.
/// `nbdkit_parse_probability`, nbdkit 1.36.
///
/// # Errors
/// Negative, infinite, division by zero (0/0 counts as 0), or no number.
pub fn probability(what: &str, text: &str) -> Result<f64> {
    let bad = || Error::msg(format!("{what}: could not parse '{text}' as a probability"));
    let Some(Float { value: number, negative: false, rest }) = Float::scan(text) else {
        return Err(bad());
    };
    let result = match rest {
        "" => number,
        "%" => number / 100.0,
        _ => {
            let divisor = rest.strip_prefix([':', '/']).ok_or_else(bad)?;
            match Float::scan(divisor) {
                Some(Float { value, negative: false, rest: "" }) if value != 0.0 => number / value,
                Some(Float { negative: false, rest: "", .. }) if number == 0.0 => 0.0,
                _ => return Err(bad()),
            }
        }
    };
    if result.is_finite() { Ok(result) } else { Err(bad()) }
}

/// Reads a password: the text itself, `-` (asked for on the terminal), `-FD` (read from
/// an inherited descriptor, which is then closed) or `+FILE`. From a descriptor or file
/// it is the first line.
///
/// # Errors
/// The source cannot be read, or is one of the standard descriptors.
pub fn password(value: &str) -> Result<String> {
    String::from_utf8(password_bytes(value.as_bytes())?)
        .map_err(|_| Error::msg("the password is not UTF-8"))
}

/// As [`password`], for those that may hold any bytes.
///
/// # Errors
/// As there.
pub fn password_bytes(value: &[u8]) -> Result<Vec<u8>> {
    if value == b"-" {
        return password_from_terminal();
    }
    if let Some(fd) = value.strip_prefix(b"-") {
        let fd = String::from_utf8_lossy(fd);
        let fd: i32 = integer("password file descriptor", &fd)?;
        if fd <= 2 {
            return Err(Error::msg(format!(
                "cannot use password -FD with stdin/stdout/stderr: {fd}"
            )));
        }
        // Not opened anew by its /proc name: that blocks for a FIFO whose writer has left, fails
        // for a socket, and begins a file at its start.
        let name = || format!("password file descriptor {fd}");
        let password = first_line(&inherited::take(fd).or_error(name)?.into());
        return password.or_error(name);
    }
    let Some(path) = value.strip_prefix(b"+") else { return Ok(value.to_vec()) };
    let path = Path::new(OsStr::from_bytes(path));
    let file = File::open(path).or_error(|| format!("open: {}", path.display()))?;
    first_line(&file).or_error(|| format!("read: {}", path.display()))
}

/// Passwords are short; a device or a huge file named by mistake must not fill the memory.
const MAX_PASSWORD: u64 = 64 * 1024;

fn first_line(file: &File) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(file.take(MAX_PASSWORD)).read_until(b'\n', &mut line)?;
    Ok(chomp(line))
}

fn chomp(mut line: Vec<u8>) -> Vec<u8> {
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    line
}

fn password_from_terminal() -> Result<Vec<u8>> {
    if !crate::client::stdio_safe() {
        return Err(Error::msg("stdin is not available for reading password"));
    }
    let stdin = io::stdin();
    let Ok(saved) = tcgetattr(stdin.as_fd()) else {
        return Err(Error::msg("stdin is not a tty, cannot read password interactively"));
    };
    let mut quiet = saved.clone();
    quiet.local_flags.remove(LocalFlags::ECHO);
    let _ = write!(io::stdout(), "password: ");
    let _ = io::stdout().flush();
    tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &quiet).or_error(|| "tcsetattr: stdin")?;
    let mut line = Vec::new();
    let read = stdin.lock().take(MAX_PASSWORD).read_until(b'\n', &mut line);
    let restored = tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &saved);
    println!();
    read.or_error(|| "read: stdin")?;
    restored.or_error(|| "tcsetattr: stdin")?;
    Ok(chomp(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_every_suffix() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            (" 08", 8),
            (" +1k", 1024),
            ("-0", 0),
            ("3s", 1536),
            ("1K", 1 << 10),
            ("1m", 1 << 20),
            ("1G", 1 << 30),
            ("1t", 1 << 40),
            ("1P", 1 << 50),
            ("7e", 7 << 60),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn sizes_that_are_not_sizes_say_why() {
        for (text, why) in [
            ("", "could not parse size string: "),
            ("foo", "could not parse size string: foo"),
            ("-1", "size cannot be negative: -1"),
            ("9223372036854775808", "size exceeds maximum value: 9223372036854775808"),
            ("8E", "could not parse size: size * scale overflows: 8E"),
            ("1x", "could not parse size: unknown suffix: x"),
            ("1kk", "could not parse size: unknown suffix: kk"),
        ] {
            assert_eq!(size(text).unwrap_err().message(), why);
        }
    }

    #[test]
    fn integers_in_three_bases_and_within_their_type() {
        assert_eq!(integer::<u32>("x", "0x1F").unwrap(), 31);
        assert_eq!(integer::<i32>("x", "-017").unwrap(), -15);
        assert_eq!(integer::<u8>("x", "255").unwrap(), 255);
        assert_eq!(integer::<i64>("x", "0").unwrap(), 0);
        assert!(integer::<u8>("x", "256").is_err());
        assert!(integer::<u8>("x", "-1").is_err());
        for garbage in ["", "x", "08", "0x", "1 ", "1k", "--1"] {
            assert!(integer::<i32>("x", garbage).is_err(), "{garbage}");
        }
    }

    #[test]
    fn delays_with_units_and_fractions() {
        for (text, nanos) in [
            ("1", 1_000_000_000),
            ("1.5s", 1_500_000_000),
            ("10ms", 10_000_000),
            ("2us", 2_000),
            ("3\u{3bc}s", 3_000),
            ("40ns", 40),
            (" 1e-3", 1_000_000),
        ] {
            assert_eq!(delay("d", text).unwrap(), Duration::from_nanos(nanos), "{text}");
        }
        for bad in ["", "abc", "-1", "-0", "1 s", "1m", "nan", "inf", "1e99"] {
            assert!(delay("d", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn probabilities_in_every_form() {
        for (text, p) in
            [("0.5", 0.5), ("10%", 0.1), ("1:4", 0.25), ("1/4", 0.25), ("0/0", 0.0), ("1e-2", 0.01)]
        {
            assert!((probability("p", text).unwrap() - p).abs() < 1e-12, "{text}");
        }
        for bad in ["", "-1", "1/0", "x", "1:", "1%%"] {
            assert!(probability("p", bad).is_err(), "{bad}");
        }
    }

    /// A descriptor, and what is left to read of it.
    fn read(fd: impl Into<std::os::fd::OwnedFd>) -> String {
        use std::os::fd::IntoRawFd;
        password(&format!("-{}", fd.into().into_raw_fd())).expect("a password")
    }

    #[test]
    fn passwords_are_read_from_descriptors_of_any_kind() {
        let (pipe, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(b"of a pipe").expect("written");
        drop(writer);
        assert_eq!(read(pipe), "of a pipe");

        let (socket, mut peer) = std::os::unix::net::UnixStream::pair().expect("sockets");
        peer.write_all(b"of a socket\nand more").expect("written");
        assert_eq!(read(socket), "of a socket");

        let path = std::env::temp_dir().join(format!("nbdkit-api-password-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let fifo = File::options().read(true).write(true).open(&path).expect("opened");
        let reader = File::open(&path).expect("opened");
        (&fifo).write_all(b"of a FIFO").expect("written");
        // Nobody is left to write: what was written is still there.
        drop(fifo);
        assert_eq!(read(reader), "of a FIFO");
        std::fs::remove_file(&path).expect("removed");

        std::fs::write(&path, "header\nof a file\n").expect("written");
        let mut file = File::open(&path).expect("opened");
        file.read_exact(&mut [0; 7]).expect("read");
        assert_eq!(read(file), "of a file");
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_named() {
        let error = password("-1000000").expect_err("an error");
        assert!(error.to_string().contains("password file descriptor 1000000"), "{error}");
    }
}
