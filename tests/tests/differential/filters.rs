//! Filters, mostly over the plugins whose contents are known.

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir};

const MIB: u64 = 1 << 20;

/// What a disk can do: its flags, and one of each request.
pub(crate) fn capabilities(s: &mut Session) {
    s.open();
    s.read(0, 16);
    s.write(0, 512, 0xaa);
    s.ask(&Ask::write(512, [1; 16]).flags(CommandFlags::FUA));
    s.ask(&Ask::write_zeroes(256, 512));
    let fast = Ask::write_zeroes(256, 512).flags(CommandFlags::FAST_ZERO);
    s.ask_if(TransmissionFlags::SEND_FAST_ZERO, &fast);
    s.ask(&Ask::trim(0, 128));
    s.ask(&Ask::cache(0, 512));
    s.ask(&Ask::flush());
    s.read(0, 1024);
    // Not beyond the first page: granularity is each server's own.
    s.block_status(0, 1024);
    s.disconnect();
}

#[test]
fn offset() {
    let arguments = ["--filter=offset", "pattern", "1M", "offset=4096", "range=8192"];
    Row::new(row_name!(), &arguments).compare(|s| {
        s.open();
        s.read(0, 16);
        s.read(8184, 8);
        s.read(8184, 9);
        s.block_status(0, 8192);
        s.disconnect();
    });
}

#[test]
fn offset_without_a_range() {
    Row::new(row_name!(), &["--filter=offset", "memory", "1M", "offset=1000"]).compare(|s| {
        capabilities(s);
        s.open();
        s.read(MIB - 1001, 1);
        s.read(MIB - 1000, 1);
        s.disconnect();
    });
}

#[test]
fn offset_beyond_the_end() {
    let ranges = [("offset=2M", "range=1K"), ("offset=0", "range=2M"), ("offset=x", "range=1")];
    for_each(&ranges, |(offset, range)| {
        let arguments = ["--filter=offset", "memory", "1M", offset, range];
        Row::new(row_name!(), &arguments).variant(offset).compare(|s| {
            s.connect();
            s.go("");
        });
    });
}

#[test]
fn tls_fallback() {
    for_each(&["tlsreadme=hello", "size=1M"], |parameter| {
        let arguments = ["--filter=tls-fallback", "memory", "1M", parameter];
        let arguments = if parameter == "size=1M" { &arguments[..3] } else { &arguments[..] };
        Row::new(row_name!(), arguments).variant(parameter).compare(|s| {
            s.open();
            s.read(0, 512);
            s.read(500, 12);
            s.read(500, 13);
            s.write(0, 512, 0xaa);
            s.block_status(0, 512);
            s.disconnect();
        });
    });
}

#[test]
fn truncate() {
    for_each(&["truncate=512", "truncate=2M", "round-up=768K", "round-down=768K"], |parameter| {
        let arguments = ["--filter=truncate", "pattern", "1M", parameter];
        Row::new(row_name!(), &arguments).variant(parameter).compare(|s| {
            s.open();
            s.read(0, 16);
            s.read(496, 16);
            s.read(512, 1);
            s.read(MIB - 8, 16);
            s.block_status(MIB - 4096, 8192);
            s.disconnect();
        });
    });
}

#[test]
fn truncate_that_lengthens_a_writable_disk() {
    Row::new(row_name!(), &["--filter=truncate", "memory", "1M", "truncate=2M"]).compare(|s| {
        s.open();
        s.write(MIB - 256, 256, 5);
        s.write(MIB - 256, 512, 0);
        s.write(MIB - 256, 512, 6);
        s.ask(&Ask::write_zeroes(MIB - 256, 512));
        s.ask(&Ask::trim(MIB - 65536, 66048));
        s.write(MIB + 256, 512, 0);
        s.write(MIB + 256, 512, 7);
        s.read(MIB - 512, 1024);
        s.block_status(0, 2 * MIB);
        s.disconnect();
    });
}

#[test]
fn cow() {
    Row::new(row_name!(), &["--filter=cow", "pattern", "1M"]).compare(|s| {
        s.open();
        s.read(0, 16);
        s.write(100, 50, 0xee);
        s.read(96, 64);
        s.ask(&Ask::write_zeroes(65536, 65536));
        s.read(65520, 32);
        s.ask(&Ask::trim(131_072, 65536));
        s.read(131_072, 16);
        s.ask(&Ask::cache(0, 65536));
        s.ask(&Ask::flush());
        s.write(MIB - 1, 1, 9);
        s.read(MIB - 8, 8);
        s.block_status(0, MIB);
        s.disconnect();
        s.open();
        s.read(96, 64);
        s.disconnect();
    });
}

#[test]
fn cow_leaves_the_file_alone() {
    let setup = |dir: &TempDir| std::fs::write(dir.join("disk"), [1; 4096]).unwrap();
    let arguments = ["--filter=cow", "file", "{dir}/disk"];
    Row::new(row_name!(), &arguments).setup(setup).compare(|s| {
        s.open();
        s.write(0, 4096, 2);
        s.read(0, 4096);
        s.ask(&Ask::flush());
        s.disconnect();
        let disk = std::fs::read(s.dir().join("disk")).unwrap();
        s.note(format!("unchanged: {}", disk == [1; 4096]));
    });
}

#[test]
fn delay() {
    let arguments = ["--filter=delay", "memory", "1M", "rdelay=20ms", "wdelay=20ms"];
    Row::new(row_name!(), &arguments).compare(|s| {
        capabilities(s);
        s.open();
        for ask in [Ask::read(0, 1), Ask::write(0, [1]), Ask::trim(0, 1), Ask::write_zeroes(0, 1)] {
            s.step("waits", |client| {
                let start = std::time::Instant::now();
                client.call(&ask)?;
                Ok(format!("at least 20 ms: {}", start.elapsed().as_millis() >= 20))
            });
        }
        s.disconnect();
    });
}

#[test]
fn error_in_every_request() {
    for_each(&["EPERM", "EIO", "ENOMEM", "EINVAL", "ENOSPC", "ESHUTDOWN"], |error| {
        let error = format!("error={error}");
        let arguments = ["--filter=error", "memory", "1M", &error, "error-rate=100%"];
        Row::new(row_name!(), &arguments).variant(&error).compare(capabilities);
    });
}

#[test]
fn error_in_one_kind_of_request() {
    for_each(&["pread", "pwrite", "trim", "zero", "extents", "cache"], |kind| {
        let error = format!("error-{kind}=ENOSPC");
        let rate = format!("error-{kind}-rate=1");
        let arguments = ["--filter=error", "memory", "1M", &error, &rate];
        Row::new(row_name!(), &arguments).variant(kind).compare(capabilities);
    });
}

#[test]
fn error_while_a_file_exists() {
    let arguments =
        ["--filter=error", "memory", "1M", "error-rate=100%", "error-file={dir}/inject"];
    Row::new(row_name!(), &arguments).compare(|s| {
        s.open();
        s.read(0, 16);
        std::fs::write(s.dir().join("inject"), "").unwrap();
        s.read(0, 16);
        std::fs::remove_file(s.dir().join("inject")).unwrap();
        s.read(0, 16);
        s.disconnect();
    });
}

/// Log lines without their time, and without the ids that depend on the order of connections.
fn log_line(line: &str) -> Option<String> {
    let Some(line) = line.strip_prefix("log: ") else { return Some(line.to_owned()) };
    let (date, rest) = line.split_once(' ')?;
    let (time, rest) = rest.split_once(' ')?;
    let like = |text: &str, pattern: &str| {
        text.len() == pattern.len()
            && text.chars().zip(pattern.chars()).all(|(found, like)| {
                if like == '0' { found.is_ascii_digit() } else { found == like }
            })
    };
    let stamp = like(date, "0000-00-00") && like(time, "00:00:00.000000");
    Some(format!("log: stamp={stamp} {rest}"))
}

#[test]
fn log() {
    let arguments = ["--filter=log", "null", "1M", "logfile={dir}/log"];
    Row::new(row_name!(), &arguments).normalise(log_line).compare(|s| {
        s.connect();
        s.list();
        s.structured_replies();
        s.set_meta_context("", &["base:allocation"]);
        s.go("");
        s.read(0, 512);
        s.write(0, 32768, 1);
        s.ask(&Ask::write(0, [2; 16]).flags(CommandFlags::FUA));
        s.ask(&Ask::write_zeroes(0, 16));
        s.ask(&Ask::trim(0, 16));
        s.ask(&Ask::cache(0, 16));
        s.ask(&Ask::flush());
        s.block_status(0, MIB);
        s.disconnect();
        // The last line is written when the connection is torn down, a moment after the client is
        // gone.
        let path = s.dir().join("log");
        let mut text = String::new();
        for _ in 0..400 {
            text = std::fs::read_to_string(&path).unwrap();
            if text.contains("Disconnect") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for line in text.lines() {
            s.note(format!("log: {line}"));
        }
    });
}

#[test]
fn fua_modes() {
    for_each(&["discard", "pass", "none", "emulate", "native", "force"], |mode| {
        let mode = format!("fuamode={mode}");
        Row::new(row_name!(), &["--filter=fua", "memory", "1M", &mode])
            .variant(&mode)
            .compare(capabilities);
    });
}

#[test]
fn fua_mode_by_default() {
    Row::new(row_name!(), &["--filter=fua", "memory", "1M"]).compare(capabilities);
}

#[test]
fn nozero_modes() {
    let fast_modes = ["none", "slow", "ignore", "default"];
    let modes =
        ["none", "emulate", "notrim", "plugin"].map(|zero| fast_modes.map(|fast| (zero, fast)));
    for_each(modes.as_flattened(), |(zero, fast)| {
        let variant = format!("{zero} {fast}");
        let zero = format!("zeromode={zero}");
        let fast = format!("fastzeromode={fast}");
        let arguments = ["--filter=nozero", "memory", "1M", &zero, &fast];
        Row::new(row_name!(), &arguments).variant(&variant).compare(capabilities);
    });
}

#[test]
fn noextents() {
    Row::new(row_name!(), &["--filter=noextents", "memory", "1M"]).compare(capabilities);
}

#[test]
fn nocache_modes() {
    for_each(&["none", "emulate", "nop", "frob"], |mode| {
        let mode = format!("cachemode={mode}");
        Row::new(row_name!(), &["--filter=nocache", "memory", "1M", &mode])
            .variant(&mode)
            .compare(capabilities);
    });
}

#[test]
fn noparallel_modes() {
    for_each(&["requests", "all-requests", "connections"], |mode| {
        let mode = format!("serialize={mode}");
        Row::new(row_name!(), &["--filter=noparallel", "memory", "1M", &mode])
            .variant(&mode)
            .compare(capabilities);
    });
}

#[test]
fn limit() {
    Row::new(row_name!(), &["--filter=limit", "memory", "1M", "limit=1"]).compare(|s| {
        s.open();
        let socket = s.dir().join("sock");
        s.step("a second client", |_| {
            let stream = std::os::unix::net::UnixStream::connect(socket)?;
            let mut second = nbdkit_tests::Client::new(stream);
            second.expect_close().map(|()| "is turned away")
        });
        s.read(0, 512);
        s.disconnect();
    });
}

#[test]
fn exportname_lists() {
    for_each(&["keep", "error", "empty", "defaultonly", "explicit"], |mode| {
        let mode = format!("exportname-list={mode}");
        let arguments =
            ["--filter=exportname", "memory", "1M", &mode, "exportname=a", "exportname=b"];
        Row::new(row_name!(), &arguments).variant(&mode).compare(|s| {
            s.connect();
            s.list();
            s.go("c");
            s.disconnect();
        });
    });
}

#[test]
fn exportname_strict_and_descriptions() {
    for_each(&["keep", "none", "fixed:some disk", "script:echo about $name"], |description| {
        let description = format!("exportdesc={description}");
        let arguments = [
            "--filter=exportname",
            "info",
            "exportname=a",
            "exportname=b",
            "exportname-strict=true",
            "default-export=a",
            &description,
        ];
        Row::new(row_name!(), &arguments).variant(&description).compare(|s| {
            s.connect();
            s.list();
            s.info("");
            s.info("c");
            s.go("b");
            s.read(0, 1);
            s.disconnect();
        });
    });
}

/// A script whose default export is "foo" and whose disk is the name of the export that was opened.
fn script_with_a_default(dir: &TempDir) {
    let script = r#"#!/bin/sh
        case "$1" in
            default_export) echo foo ;;
            list_exports) echo NAMES; echo foo; echo bar ;;
            open) echo "$3" ;;
            get_size) echo 16 ;;
            pread) printf '%-16s' "$2" ;;
            *) exit 2 ;;
        esac"#;
    let path = dir.path().join("script");
    std::fs::write(&path, script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, executable).unwrap();
}

/// Who is let in: every combination of the three parameters, asked by every kind of name.
#[test]
fn exportname_access() {
    let defaults = [None, Some("default-export="), Some("default-export=bar")];
    let lists: [&[&str]; 5] = [
        &[],
        &["exportname="],
        &["exportname=foo"],
        &["exportname=bar", "exportname="],
        &["exportname=other"],
    ];
    for strict in ["false", "true"] {
        let strict = format!("exportname-strict={strict}");
        for default in defaults {
            for list in lists {
                let mut arguments = vec!["--filter=exportname", "sh", "{dir}/script", &strict];
                arguments.extend(default);
                arguments.extend(list);
                let variant = arguments[3..].join(" ");
                let row = Row::new(row_name!(), &arguments).variant(&variant);
                row.setup(script_with_a_default).compare(|s| {
                    s.connect();
                    s.list();
                    for name in ["", "foo", "bar", "other"] {
                        s.info(name);
                    }
                    s.disconnect();
                    // What "" stands for shows in the data.
                    s.connect();
                    s.go("");
                    s.read(0, 16);
                    s.disconnect();
                });
            }
        }
    }
}

#[test]
fn two_filters_in_order() {
    let arguments =
        ["--filter=truncate", "--filter=offset", "pattern", "1M", "offset=8", "truncate=16"];
    Row::new(row_name!(), &arguments).compare(|s| {
        s.open();
        s.read(0, 16);
        s.disconnect();
    });
    let arguments =
        ["--filter=offset", "--filter=truncate", "pattern", "1M", "offset=8", "truncate=16"];
    Row::new(row_name!(), &arguments).variant("offset first").compare(|s| {
        s.open();
        s.read(0, 8);
        s.disconnect();
    });
}
