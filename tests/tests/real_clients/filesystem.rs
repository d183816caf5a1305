//! A file system on a loop device on nbdfuse(1) on our server: made, written, checked, and found
//! again by another client.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nbdkit_tests::Server;

use crate::{has, may, must, noise};

/// The export as a file: nbdfuse in the foreground.
struct Fuse {
    child: Child,
    file: PathBuf,
}

impl Fuse {
    fn mount(server: &Server, name: &str) -> Fuse {
        let file = server.dir().join(name);
        std::fs::write(&file, "").expect("a mount point");
        let child = Command::new("nbdfuse")
            .arg(&file)
            .arg("--unix")
            .arg(server.socket())
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdfuse");
        let end = Instant::now() + Duration::from_secs(20);
        while std::fs::metadata(&file).map_or(0, |metadata| metadata.len()) == 0 {
            assert!(Instant::now() < end, "nbdfuse did not mount");
            std::thread::sleep(Duration::from_millis(20));
        }
        Fuse { child, file }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = may("umount", &[&self.file.to_string_lossy()]);
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = may("umount", &["-l", &self.file.to_string_lossy()]);
    }
}

/// A loop device on a file.
struct Loop(String);

impl Loop {
    fn attach(file: &Path) -> Loop {
        Loop(must("losetup", &["-f", "--show", &file.to_string_lossy()]).stdout.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = may("losetup", &["-d", &self.0]);
    }
}

/// A mounted file system, below a mount that is shared: a server that another test starts meanwhile
/// has mounts of its own, and only what is shared is unmounted there too. mount_namespaces(7).
struct Mount {
    shared: PathBuf,
    dir: PathBuf,
}

impl Mount {
    fn new(device: &Loop, shared: PathBuf) -> Mount {
        let dir = shared.join("disk");
        std::fs::create_dir_all(&dir).expect("a mount point");
        let name = shared.to_string_lossy().into_owned();
        must("mount", &["--bind", &name, &name]);
        must("mount", &["--make-shared", &name]);
        must("mount", &[&device.0, &dir.to_string_lossy()]);
        Mount { shared, dir }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = may("umount", &[&self.dir.to_string_lossy()]);
        let _ = may("umount", &[&self.shared.to_string_lossy()]);
    }
}

#[test]
fn a_file_system_survives_being_unmounted() {
    if !(has("nbdfuse") && has("losetup") && has("mkfs.ext4") && has("fsck.ext4")) {
        return;
    }
    let can_mount = nix::unistd::geteuid().is_root()
        && Path::new("/dev/fuse").exists()
        && Path::new("/dev/loop-control").exists();
    if !can_mount {
        eprintln!("SKIPPED: mounting needs root, /dev/fuse and loop devices");
        return;
    }
    let builder = Server::nbdkit(["file", "{dir}/disk"]);
    std::fs::File::create(builder.dir().join("disk"))
        .and_then(|f| f.set_len(96 << 20))
        .expect("a disk");
    let server = builder.start();
    let content = noise(10 << 20);
    {
        let fuse = Fuse::mount(&server, "first");
        let device = Loop::attach(&fuse.file);
        must("mkfs.ext4", &["-q", &device.0]);
        let mount = Mount::new(&device, server.dir().join("mnt"));
        std::fs::write(mount.dir.join("noise"), &content).expect("written");
        for n in 0..200 {
            std::fs::write(mount.dir.join(format!("small{n}")), n.to_string()).expect("written");
        }
        for n in (0..200).step_by(2) {
            std::fs::remove_file(mount.dir.join(format!("small{n}"))).expect("removed");
        }
        drop(mount);
        must("fsck.ext4", &["-f", "-n", &device.0]);
    }
    let fuse = Fuse::mount(&server, "second");
    let device = Loop::attach(&fuse.file);
    let mount = Mount::new(&device, server.dir().join("mnt"));
    assert!(std::fs::read(mount.dir.join("noise")).expect("still there") == content);
    assert_eq!(std::fs::read_to_string(mount.dir.join("small101")).expect("still there"), "101");
    assert!(!mount.dir.join("small100").exists());
}
