//! The examples of nbdkit-sh-plugin(3), nbdkit-eval-plugin(1), nbdkit-log-filter(1) and
//! nbdkit-exportname-filter(1), and what else people paste into scripts: as root, as root who
//! becomes nobody and as an ordinary user, here and with Debian's server.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use nbd_protocol::constants::Rep;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, Client, TempDir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Starter, has, set_mode, write, write_script};

/// A command line, what is there when it runs, and what a client does then.
struct Example<'a> {
    arguments: &'a [&'a str],
    stdin: Option<&'a str>,
    setup: &'a dyn Fn(&TempDir),
    session: &'a dyn Fn(&mut Session),
    /// What is waited for on standard error before the server is stopped, each of these: Debian's
    /// does not wait for its log scripts, which may end in any order.
    awaited: &'a [&'a str],
    /// A line of the transcript that shows that the example did what it is there for, for each who
    /// runs it.
    proof: &'a dyn Fn(Starter) -> &'a str,
}

impl Example<'_> {
    fn transcript(&self, binary: &Binary, starter: Starter) -> Vec<String> {
        let builder = starter.server(binary.clone(), self.arguments, self.stdin);
        (self.setup)(builder.dir());
        let dir = builder.dir().path().to_owned();
        let mut server = builder.start();
        let mut session = Session::new(server.socket(), &dir);
        (self.session)(&mut session);
        let mut lines = session.into_lines();
        for text in self.awaited {
            let _ = server.wait_for_stderr(text);
        }
        lines.push(format!("server: {}", server.stop()));
        // For the same reason lines come in any order.
        let stderr = server.stderr_text_after_end();
        let mut stderr: Vec<String> =
            stderr.lines().map(|line| format!("stderr: {line}")).collect();
        stderr.sort();
        lines.extend(stderr);
        let anonymous =
            |line: &String| without_tmpdir(&line.replace(&*dir.to_string_lossy(), "{dir}"));
        lines.iter().map(anonymous).collect()
    }

    /// Who becomes nobody is held against Debian's server started by nobody: Debian's eval keeps
    /// its scripts where only root finds them.
    fn compare(&self) {
        let Some(debian) = Binary::debian() else {
            assert!(std::env::var_os("CI").is_none(), "CI must have Debian's nbdkit, the oracle");
            eprintln!("SKIPPED: Debian's nbdkit is not installed, nothing was compared");
            return;
        };
        let starters = Starter::all();
        let may_be_ordinary = starters.contains(&Starter::Ordinary);
        for starter in starters {
            let found = self.transcript(&Binary::under_test(), starter);
            let proof = (self.proof)(starter);
            assert!(
                found.iter().any(|line| line.contains(proof)),
                "{starter:?}: {proof}: {found:#?}"
            );
            let oracle = match starter {
                Starter::Dropped if !may_be_ordinary => continue,
                Starter::Dropped => Starter::Ordinary,
                other => other,
            };
            assert_eq!(found, self.transcript(&debian, oracle), "{starter:?}: ours and Debian's");
        }
    }
}

/// The name of nbdkit's temporary directory is random.
fn without_tmpdir(line: &str) -> String {
    match line.find("/tmp/nbdkit") {
        Some(at) if line.len() >= at + 17 => format!("{}$tmpdir{}", &line[..at], &line[at + 17..]),
        _ => line.to_owned(),
    }
}

/// What is in a file of the private directory.
fn note(s: &mut Session, name: &str) {
    let text = std::fs::read_to_string(s.dir().join(name));
    s.note(format!("{name}: {}", text.unwrap_or_else(|error| error.to_string())));
}

fn read_512(s: &mut Session) {
    s.open();
    s.read(0, 512);
    s.disconnect();
}

fn disk(dir: &TempDir) {
    write(dir, "disk.img", &"d".repeat(65536), 0o666);
}

#[test]
fn an_inline_script() {
    let script = "  case \"$1\" in\n    get_size) echo 1M ;;\n    pread) dd if=/dev/zero count=$3 \
                  iflag=count_bytes ;;\n    *) exit 2 ;;\n  esac\n";
    Example {
        arguments: &["sh", "-"],
        stdin: Some("inline"),
        setup: &|dir| write(dir, "inline", script, 0o644),
        session: &read_512,
        awaited: &[],
        proof: &|_| "00*512",
    }
    .compare();
}

#[test]
fn eval_zeroes() {
    Example {
        arguments: &[
            "eval",
            "get_size= echo 64M ",
            "pread= dd if=/dev/zero count=$3 iflag=count_bytes ",
        ],
        stdin: None,
        setup: &|_| {},
        session: &read_512,
        awaited: &[],
        proof: &|_| "00*512",
    }
    .compare();
}

#[test]
fn eval_that_serves_a_file_like_the_file_plugin() {
    Example {
        arguments: &[
            "eval",
            "config=ln -sf \"$(realpath \"$3\")\" $tmpdir/file",
            "get_size=stat -Lc %s $tmpdir/file",
            "pread=dd if=$tmpdir/file skip=$4 count=$3 iflag=count_bytes,skip_bytes",
            "pwrite=dd of=$tmpdir/file seek=$4 conv=notrunc oflag=seek_bytes",
            "file=disk.img",
        ],
        stdin: None,
        setup: &disk,
        session: &|s| {
            s.open();
            s.write(1000, 24, 7);
            s.read(512, 1024);
            s.disconnect();
        },
        awaited: &[],
        proof: &|_| "64*488 07*24 64*512",
    }
    .compare();
}

#[test]
fn a_script_with_an_image_a_state_file_a_helper_and_temporary_files() {
    Example {
        arguments: &["sh", "script"],
        stdin: None,
        setup: &|dir| {
            disk(dir);
            write(dir, "helper", "#!/bin/sh\nstat -Lc %s disk.img\n", 0o755);
            let cases = "get_size) ./helper ;;
                open) mktemp -d $tmpdir/handle-XXXXXX ;;
                close) rm -rf \"$2\"; ls $tmpdir | wc -l >>closed ;;
                pread) echo \"$3 $4\" >>state; echo x >\"$2/own\" || exit 1
                    t=$(mktemp) && rm \"$t\" || exit 1
                    dd if=\"${0%/*}/disk.img\" skip=$4 count=$3 iflag=count_bytes,skip_bytes ;;";
            write_script(dir, "script", "/bin/sh", cases);
        },
        session: &|s| {
            read_512(s);
            let closed = s.dir().join("closed");
            eventually("closed", || closed.metadata().is_ok_and(|it| it.len() > 0));
            note(s, "closed");
            note(s, "state");
        },
        awaited: &[],
        proof: &|_| "state: 512 0",
    }
    .compare();
}

#[test]
fn a_script_that_changes_owners_and_permissions() {
    let cases = "get_size) echo 1M ;;
        pread) { touch f; chown 12:13 f; stat -c %u:%g f; chmod 2640 f; stat -c %a f; rm -f f; id -u; pwd; } >out 2>&1
            head -c $3 /dev/zero ;;";
    Example {
        arguments: &["sh", "script"],
        stdin: None,
        setup: &|dir| write_script(dir, "script", "/bin/sh", cases),
        session: &|s| {
            read_512(s);
            note(s, "out");
        },
        awaited: &[],
        proof: &|starter| {
            let root = starter == Starter::Caller && nix::unistd::geteuid().is_root();
            if root {
                "out: 12:13\n2640\n0\n"
            } else {
                "chown: changing ownership of 'f': Operation not permitted"
            }
        },
    }
    .compare();
}

/// Answers every connection, HTTP or not, with a page of one word.
fn web_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            );
        }
    });
    port
}

#[test]
fn scripts_that_use_the_network() {
    let url = format!("127.0.0.1:{}", web_server());
    let (host, port) = url.split_once(':').expect("a port");
    let python = format!(
        "import socket; s = socket.create_connection((\"{host}\", {port})); s.send(b\"x\"); \
         print(s.recv(99).decode()[-5:], end=\"\")"
    );
    let bash = format!("exec 3<>/dev/tcp/{host}/{port}; echo x >&3; tail -c 5 <&3");
    for (program, command) in [
        ("curl", format!("curl -s http://{url}/")),
        ("wget", format!("wget -qO- http://{url}/")),
        ("python3", format!("python3 -c '{python}'")),
        ("bash", format!("bash -c '{bash}'")),
    ] {
        if !has(program) {
            continue;
        }
        Example {
            arguments: &["sh", "script"],
            stdin: None,
            setup: &|dir| {
                let cases = format!("get_size) echo 5 ;;\npread) {command} ;;");
                write_script(dir, "script", "/bin/sh", &cases);
            },
            session: &|s| {
                s.open();
                s.read(0, 5);
                s.disconnect();
            },
            awaited: &[],
            proof: &|_| "68*1 65*1 6c*2 6f*1",
        }
        .compare();
    }
}

#[test]
fn log_scripts() {
    Example {
        arguments: &[
            "-f",
            "--filter=log",
            "null",
            "10M",
            "logscript=echo $connection $type $id $act $offset >&2",
        ],
        stdin: None,
        setup: &|_| {},
        session: &|s| {
            s.open();
            s.read(0, 512);
            s.write(512, 512, 1);
            s.disconnect();
        },
        awaited: &[
            "PRINT Ready",
            "ENTER 1 Preconnect",
            "LEAVE 1 Preconnect",
            "1 PRINT Connect",
            "1 ENTER 1 Read 0x0",
            "1 LEAVE 1 Read",
            "1 ENTER 2 Write 0x200",
            "1 LEAVE 2 Write",
            "1 PRINT Disconnect",
        ],
        proof: &|_| "stderr: 1 ENTER 2 Write 0x200",
    }
    .compare();
    Example {
        arguments: &[
            "-f",
            "--filter=log",
            "memory",
            "10M",
            "logscript=
                   if [ \"$act\" = \"Read\" -a \"$type\" = \"ENTER\" ]; then
                       echo Client is reading $count bytes from $offset >&2
                   fi
            ",
        ],
        stdin: None,
        setup: &|_| {},
        session: &read_512,
        awaited: &["Client is reading"],
        proof: &|_| "stderr: Client is reading 0x200 bytes from 0x0",
    }
    .compare();
}

/// nbdkit-log-filter(1): "Strings and lists are shell-quoted", and a list is an array of the shell
/// that runs the script.
#[test]
fn a_log_script_gets_lists_as_arrays_in_bash() {
    Example {
        arguments: &[
            "--filter=log",
            "eval",
            "get_size=echo 64K",
            "pread=head -c $3 /dev/zero",
            "extents=echo 0 4096; echo 4096 60K hole,zero",
            "list_exports=echo one; echo 'a b'",
            "logscript=[ \"$type\" = LEAVE ] || exit
                case $act in
                    Extents) echo ${#extents[@]}: \"${extents[@]}\" ${extents[5]} $0 $# >>log; env | grep -c ^act= >>log ;;
                    ListExports) echo ${#exports[@]}: \"${exports[1]}\" $return >>log ;;
                esac",
        ],
        stdin: None,
        setup: &|_| {},
        session: &|s| {
            s.connect();
            s.list();
            s.open();
            s.block_status(0, 65536);
            s.disconnect();
            let log = s.dir().join("log");
            let text = || std::fs::read_to_string(&log).unwrap_or_default();
            eventually("three lines", || text().lines().count() == 3);
            let mut lines: Vec<String> = text().lines().map(str::to_owned).collect();
            lines.sort();
            s.note(lines.join("; "));
        },
        awaited: &[],
        proof: &|_| "0; 2: a b 0; 6: 0x0 0x1000  0x1000 0xf000 hole,zero hole,zero sh 0",
    }
    .compare();
}

#[test]
fn descriptions_that_a_script_prints() {
    let dir = TempDir::new();
    set_mode(dir.path(), 0o755);
    for name in ["file1", "file 2"] {
        write(&dir, name, "x", 0o644);
        let touched =
            Command::new("touch").args(["-d", "2020-02-02 UTC"]).arg(dir.join(name)).status();
        assert!(touched.expect("touch").success());
    }
    let path = dir.path().display();
    let (dir_is, desc) =
        (format!("dir={path}"), format!("exportdesc=script:ls -l {path}/\"$name\""));
    Example {
        arguments: &["--filter=exportname", "file", &dir_is, &desc],
        stdin: None,
        setup: &|_| {},
        session: &|s| {
            s.connect();
            s.step("descriptions", |client| {
                let exports = client.list()?.exports;
                let mut lines: Vec<String> = exports.iter().map(|it| format!("{it:?}")).collect();
                lines.sort();
                Ok(lines.join(" "))
            });
        },
        awaited: &[],
        proof: &|_| "-rw-r--r--",
    }
    .compare();
}

/// A script that says only the name of an errno, nbdkit-sh-plugin(3), "Exit codes": nbdkit logs a
/// line without a text, ours has the errno's.
#[test]
fn a_script_that_prints_an_errno_alone_leaves_a_line() {
    let line_of = |binary: Binary| {
        let arguments = ["eval", "get_size=echo 1M", "pread=echo ENOSPC >&2; exit 1"];
        let mut server = Starter::Caller.server(binary, &arguments, None).start();
        let mut client = server.connected("");
        let error = client.call(&Ask::read(0, 512)).expect("a reply").error;
        drop(client);
        server.stop();
        let text = server.stderr_text_after_end();
        (format!("{error:?}"), without_tmpdir(text.trim_end()))
    };
    let (error, line) = line_of(Binary::under_test());
    if let Some(debian) = Binary::debian() {
        let (errors, lines) = line_of(debian);
        assert_eq!(error, errors);
        assert_eq!(lines, "nbdkit: eval[1]: error: $tmpdir/pread:");
        assert!(line.starts_with(&lines), "{line}");
    }
    assert!(
        Binary::under_test() == Binary::debian().unwrap_or_else(Binary::ours)
            || line.ends_with(": No space left on device"),
        "{line}"
    );
}

/// nbdkit(1): a server in the foreground stays in its directory, one in the background goes to /.
#[test]
fn the_directory_of_scripts_is_the_servers() {
    let directory = |binary: &Path| {
        let dir = TempDir::new();
        let cases = format!(
            "get_size) echo 1M ;;\npread) pwd >{}/out; head -c $3 /dev/zero ;;",
            dir.path().display()
        );
        write_script(&dir, "script", "/bin/sh", &cases);
        let mut start = Command::new(binary);
        start.current_dir(dir.path()).args(["-P", "pid", "-U", "sock", "sh", "./script"]);
        // Returns when the server is in the background.
        let status = start.stdin(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.expect("started").success());
        let text = || std::fs::read_to_string(dir.join("pid")).unwrap_or_default();
        eventually("a pid file", || text().ends_with('\n'));
        let text = text();
        let pid = Pid::from_raw(text.trim().parse().expect("a number"));
        let stream = std::os::unix::net::UnixStream::connect(dir.join("sock")).expect("connected");
        let mut client = Client::new(stream);
        client.handshake().expect("a greeting");
        assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
        drop(client);
        let _ = kill(pid, Signal::SIGTERM);
        eventually("the end", || kill(pid, None).is_err());
        std::fs::read_to_string(dir.join("out")).expect("written")
    };
    for binary in [Some(Binary::under_test()), Binary::debian()].into_iter().flatten() {
        assert_eq!(directory(binary.path()), "/\n", "{binary:?}");
    }
}
