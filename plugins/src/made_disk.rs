//! Disks that a program makes when a client comes, for tmpdisk and ondemand: their parameters, the
//! program, and the client's connection.
//!
//! The parameters are the user's; a part of the disk's path may be a client's. All of them are
//! literals in the script.

#![forbid(unsafe_code)]

mod connection;
mod workplace;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};

use nbdkit_api::{Client, Errno, Error, Result, ResultExt, Value};

pub(crate) use self::connection::MadeDisk;
pub(crate) use self::workplace::{Workplace, sweep};
use crate::image;

/// Longest script, bytes: what the kernel takes as one argument of a program, execve(2), less what
/// a path may add.
const MAX_SCRIPT: usize = (128 << 10) - (8 << 10);

/// How disks are made.
#[derive(Debug, Default)]
pub(crate) struct Recipe {
    /// Bytes.
    size: Option<u64>,
    /// The file system, `NAME` of `mkfs.NAME`; ext4 if it is not given.
    kind: Option<String>,
    label: Option<OsString>,
    /// A fragment of shell script that is run instead.
    command: Option<OsString>,
    /// Variables for it.
    variables: BTreeMap<String, OsString>,
}

/// What is known of the programs that make file systems.
struct FileSystem {
    names: &'static [&'static str],
    /// Debian's package.
    package: &'static str,
    /// What keeps it from asking questions about a file that is no device, and from talking.
    options: &'static [&'static str],
    label: &'static str,
}

const FILE_SYSTEMS: &[FileSystem] = &[
    FileSystem {
        names: &["ext2", "ext3", "ext4"],
        package: "e2fsprogs",
        options: &["-q", "-F"],
        label: "-L",
    },
    FileSystem { names: &["xfs"], package: "xfsprogs", options: &["-q"], label: "-L" },
    FileSystem {
        names: &["vfat", "fat", "msdos"],
        package: "dosfstools",
        options: &[],
        label: "-n",
    },
    FileSystem { names: &["exfat"], package: "exfatprogs", options: &[], label: "-L" },
    FileSystem { names: &["btrfs"], package: "btrfs-progs", options: &["-q"], label: "-L" },
    FileSystem { names: &["ntfs"], package: "ntfs-3g", options: &["-Q", "-F"], label: "-L" },
    FileSystem { names: &["f2fs"], package: "f2fs-tools", options: &[], label: "-l" },
    FileSystem { names: &["jfs"], package: "jfsutils", options: &["-q"], label: "-L" },
    FileSystem { names: &["nilfs2"], package: "nilfs-tools", options: &["-q"], label: "-L" },
    FileSystem {
        names: &["reiserfs"],
        package: "reiserfsprogs",
        options: &["-q", "-ff"],
        label: "-l",
    },
    FileSystem { names: &["udf"], package: "udftools", options: &[], label: "-l" },
];

/// Any other.
const OTHER: FileSystem = FileSystem { names: &[], package: "", options: &[], label: "-L" };

/// Whether a shell can have a variable of this name.
fn is_variable(key: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    key.bytes().next().is_some_and(letter)
        && key.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
}

/// A literal for the shell.
fn quote(value: &OsStr) -> OsString {
    let mut quoted = vec![b'\''];
    for byte in value.as_encoded_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    std::os::unix::ffi::OsStringExt::from_vec(quoted)
}

impl Recipe {
    /// Takes one parameter. What is no parameter is a variable for `command`.
    ///
    /// # Errors
    /// A bad value, or a name that no variable can have.
    pub(crate) fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "size" => self.size = Some(value.size()?),
            "type" => self.kind = Some(file_system(value.str()?)?),
            "label" => self.label = Some(value.to_os_string()).filter(|label| !label.is_empty()),
            "command" => self.command = Some(value.to_os_string()),
            "disk" => {
                return Err(Error::msg("'disk' parameter cannot be set on the command line"));
            }
            key if is_variable(key) => {
                self.variables.insert(key.to_owned(), value.to_os_string());
            }
            key => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    pub(crate) fn has_size(&self) -> bool {
        self.size.is_some()
    }

    /// Checks what can be checked before there is a client.
    ///
    /// # Errors
    /// The program is not installed, or the script is too long.
    pub(crate) fn check(&self) -> Result<()> {
        if self.command.is_some() {
            return match self.script(Path::new("")).len() {
                0..=MAX_SCRIPT => Ok(()),
                length => Err(Error::msg(format!(
                    "command= and the variables for it have {length} bytes together, \
                     more than {MAX_SCRIPT}"
                ))),
            };
        }
        let mkfs = format!("mkfs.{}", self.kind());
        match image::find_program(OsStr::new(&mkfs)) {
            Some(_) => Ok(()),
            None => Err(no_program(&mkfs, self.file_system().package)),
        }
    }

    fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("ext4")
    }

    fn file_system(&self) -> &'static FileSystem {
        let known = |it: &&FileSystem| it.names.contains(&self.kind());
        FILE_SYSTEMS.iter().find(known).unwrap_or(&OTHER)
    }

    /// Makes a disk at the absolute path `disk`, where nothing is, for `client`.
    ///
    /// # Errors
    /// EIO, with what the program said; ESHUTDOWN if the client has gone.
    pub(crate) fn make(&self, disk: &Path, client: Option<&Client>) -> Result<()> {
        let (mut command, what, package) = match &self.command {
            Some(_) => {
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(self.script(disk));
                (shell, "command".to_owned(), "dash")
            }
            None => {
                let failed = || format!("create: {}", disk.display());
                let file =
                    OpenOptions::new().write(true).create_new(true).open(disk).or_error(failed)?;
                file.set_len(self.size.unwrap_or(0)).or_error(failed)?;
                let mkfs = format!("mkfs.{}", self.kind());
                (self.mkfs(&mkfs, disk), mkfs, self.file_system().package)
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let ended = image::run(&mut command, package, client)?;
        if !ended.success() {
            return Err(ended.error(&what));
        }
        if !ended.words.is_empty() {
            nbdkit_api::debug!("{what}: {}", ended.words);
        }
        Ok(())
    }

    fn mkfs(&self, mkfs: &str, disk: &Path) -> Command {
        let file_system = self.file_system();
        let mut command = Command::new(mkfs);
        command.args(file_system.options);
        if let Some(label) = &self.label {
            command.arg(file_system.label).arg(label);
        }
        command.arg(disk);
        command
    }

    /// The command, with its variables before it.
    fn script(&self, disk: &Path) -> OsString {
        let mut script = OsString::new();
        let mut set = |name: &str, value: &OsStr| {
            script.push(name);
            script.push("=");
            script.push(quote(value));
            script.push("\n");
        };
        set("type", OsStr::new(self.kind.as_deref().unwrap_or_default()));
        set("label", self.label.as_deref().unwrap_or_default());
        set("size", OsStr::new(&self.size.unwrap_or(0).to_string()));
        self.variables.iter().for_each(|(name, value)| set(name, value));
        set("disk", disk.as_os_str());
        script.push(self.command.as_deref().unwrap_or_default());
        script
    }
}

/// Checks the name of a file system, of which a program's name is made.
fn file_system(name: &str) -> Result<String> {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'+');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(Error::msg(format!("type={name}: this is no name of a file system")));
    }
    Ok(name.to_owned())
}

fn no_program(mkfs: &str, package: &str) -> Error {
    match package {
        "" => Error::new(Errno::ENOENT, format!("there is no program {mkfs}")),
        package => image::missing(OsStr::new(mkfs), package),
    }
}

#[cfg(test)]
mod tests;
