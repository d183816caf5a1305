//! nbdkit-iso-plugin(1): an ISO 9660 image that xorriso(1), genisoimage(1) or mkisofs(1) makes from
//! directories when the server starts.
//!
//! The image is an unnamed file that all clients read; the program writes it to its standard
//! output.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nbdkit_api::{BlockSize, Connection, Error, Open, Plugin, Result, Value};

use crate::image::{self, Image};

/// The programs that are looked for if `prog` is not given, in this order.
const PROGRAMS: [&str; 3] = ["xorriso", "genisoimage", "mkisofs"];
/// What clients learn of blocks: those of ISO 9660 are preferred.
const BLOCK_SIZE: BlockSize = BlockSize { minimum: 1, preferred: 2048, maximum: u32::MAX };

/// The plugin: what is in the image, and the image once it is ready.
#[derive(Debug, Default)]
pub struct Iso {
    dirs: Vec<PathBuf>,
    /// A fragment of shell script.
    params: Option<OsString>,
    prog: Option<OsString>,
    image: Option<Image>,
}

/// The program that is used by default, the first that is installed.
fn default_program() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|name| image::find_program(OsStr::new(name)).is_some())
}

/// What makes the program understand the options of mkisofs; it may be another one's name, such as
/// mkisofs for genisoimage.
fn emulation(prog: &OsStr) -> &'static [&'static str] {
    match Path::new(prog).file_name().and_then(OsStr::to_str) {
        Some("genisoimage" | "mkisofs" | "xorrisofs") => &[],
        _ => &["-as", "mkisofs"],
    }
}

impl Iso {
    fn program(&self) -> Result<OsString> {
        match &self.prog {
            Some(prog) if image::find_program(prog).is_some() => Ok(prog.clone()),
            Some(prog) => {
                let found = PROGRAMS.iter().find(|name| **name == prog.as_os_str());
                Err(match found {
                    // Debian has no mkisofs but as another name of genisoimage.
                    Some(&"mkisofs") => image::missing(prog, "genisoimage"),
                    Some(package) => image::missing(prog, package),
                    None => {
                        Error::msg(format!("prog={}: there is no such program", prog.display()))
                    }
                })
            }
            None => default_program().map(OsString::from).ok_or_else(|| {
                Error::msg(
                    "neither xorriso, genisoimage nor mkisofs is installed \
                     (Debian has them in the packages xorriso and genisoimage)",
                )
            }),
        }
    }

    /// The command line, for the shell only where there are parameters.
    fn command(&self, prog: &OsStr) -> Command {
        let Some(params) = &self.params else {
            let mut command = Command::new(prog);
            command.args(emulation(prog)).arg("-quiet").args(&self.dirs);
            return command;
        };
        let mut script = OsString::from("prog=$1; shift; \"$prog\" ");
        for word in emulation(prog) {
            script.push(word);
            script.push(" ");
        }
        script.push("-quiet ");
        script.push(params);
        script.push(" \"$@\"");
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script).arg("sh").arg(prog).args(&self.dirs);
        command
    }
}

impl Plugin for Iso {
    fn name(&self) -> &str {
        "iso"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "longname",
            "dump_plugin",
            "config",
            "config_complete",
            "config_help",
            "get_ready",
            "open",
            "get_size",
            "block_size",
            "can_extents",
            "can_multi_conn",
            "can_cache",
            "pread",
            "extents",
            "cache",
        ]
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit iso plugin")
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("dir")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "dir=<DIRECTORY>     (required) The directory to serve.\n\
             params='<PARAMS>'              Extra parameters to pass.\n\
             prog=<ISOPROG>                 The program used to make ISOs.",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "dir" => self.dirs.push(value.realpath()?),
            "params" => self.params = Some(value.to_os_string()),
            "prog" => self.prog = Some(value.to_os_string()),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        if self.dirs.is_empty() {
            return Err(Error::msg(
                "you must supply the dir=<DIRECTORY> parameter \
                 after the plugin name on the command line",
            ));
        }
        Ok(())
    }

    fn get_ready(&mut self) -> Result<()> {
        let prog = self.program()?;
        let image = Image::new("iso", BLOCK_SIZE)?;
        let mut command = self.command(&prog);
        command.stdin(Stdio::null()).stdout(image.stdio()?);
        let ended = image::run(&mut command, "xorriso", None)?;
        if !ended.success() {
            return Err(ended.error(&prog.to_string_lossy()));
        }
        if !ended.words.is_empty() {
            nbdkit_api::debug!("{}: {}", prog.display(), ended.words);
        }
        self.image = Some(image);
        Ok(())
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "iso_prog={}", default_program().unwrap_or(PROGRAMS[0]))
    }

    /// One that is made again is not the same to the last byte.
    fn keeps_state(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        self.image.as_ref().ok_or_else(|| Error::msg("iso: not ready"))?.open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    #[test]
    fn parameters_reach_the_program_through_a_shell() {
        let (dir, other) = (TestDir::new(), TestDir::new());
        let prog = dir.join("prog gram");
        let script = "#!/bin/sh\nfor word; do echo \"<$word>\"; done\n";
        std::fs::write(&prog, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&prog, mode).unwrap();
        let said = |params: Option<&str>| {
            let mut iso = Iso::default();
            iso.config("dir", Value::new(dir.path())).unwrap();
            iso.config("dir", Value::new(other.path())).unwrap();
            iso.config("prog", Value::new(&prog)).unwrap();
            if let Some(params) = params {
                iso.config("params", Value::new(params)).unwrap();
            }
            iso.config_complete().unwrap();
            iso.get_ready().unwrap();
            let client = iso.image.unwrap().open().unwrap();
            let mut buf = vec![0; client.size().unwrap() as usize];
            client.pread(&mut buf, 0).unwrap();
            String::from_utf8(buf).unwrap()
        };
        let dirs = format!("<{}>\n<{}>\n", dir.path().display(), other.path().display());
        assert_eq!(said(None), format!("<-as>\n<mkisofs>\n<-quiet>\n{dirs}"));
        let params = "-JrT -V \"My Disk\" $((1 + 1))";
        let expected = "<-as>\n<mkisofs>\n<-quiet>\n<-JrT>\n<-V>\n<My Disk>\n<2>\n";
        assert_eq!(said(Some(params)), format!("{expected}{dirs}"));
    }

    #[test]
    fn only_xorriso_has_to_be_told_whose_options_it_gets() {
        assert!(emulation(OsStr::new("mkisofs")).is_empty());
        assert!(emulation(OsStr::new("/usr/bin/genisoimage")).is_empty());
        assert_eq!(emulation(OsStr::new("xorriso")), ["-as", "mkisofs"]);
    }

    #[test]
    fn what_is_missing_or_fails_is_one_line() {
        let dir = TestDir::new();
        let why = |prog: &str| {
            let mut iso = Iso::default();
            iso.config("dir", Value::new(dir.path())).unwrap();
            iso.config("prog", Value::new(prog)).unwrap();
            iso.get_ready().unwrap_err().message().to_owned()
        };
        assert_eq!(why("no-such"), "prog=no-such: there is no such program");
        assert_eq!(why("false"), "false: command failed with exit code 1");
        let mut iso = Iso::default();
        assert!(iso.config_complete().unwrap_err().message().contains("dir=<DIRECTORY>"));
        assert!(iso.config("foo", Value::new("1")).is_err());
        assert!(iso.config("dir", Value::new("/no/such/directory")).is_err());
    }
}
