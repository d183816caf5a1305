//! libnbd as the client, through its programs: fio's nbd engine, nbdcopy, and its Python module for
//! connections.
#![forbid(unsafe_code)]

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::fixtures::stream_holds;
use crate::load::{Access, Tally};
use crate::pattern::Pattern;

/// Connects as often as the time allows, in so many processes, and prints how often and how long it
/// took.
const CONNECTS: &str = r"
import nbd, os, sys, time
uri, seconds, processes = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
def connects(end):
    count = 0
    while time.monotonic() < end:
        h = nbd.NBD()
        h.set_uri_allow_local_file(True)
        h.connect_uri(uri)
        assert h.get_size() > 0
        h.shutdown()
        count += 1
    return count
start = time.monotonic()
pipes = []
for _ in range(processes):
    r, w = os.pipe()
    if os.fork() == 0:
        try:
            os.write(w, b'%d' % connects(start + seconds))
        except nbd.Error as error:
            print(error.string, file=sys.stderr, flush=True)
        os._exit(0)
    os.close(w)
    pipes.append(r)
counts = [os.read(r, 100) for r in pipes]
if not all(counts):
    sys.exit(1)
print(sum(int(count) for count in counts), time.monotonic() - start)
";

/// fio: the access pattern for some time. fio's random access is its own.
pub(crate) fn fio(uri: &str, access: Access, time: Duration) -> Result<Tally, Failure> {
    let operation = match (access.random, access.write) {
        (true, false) => "randread",
        (true, true) => "randwrite",
        (false, false) => "read",
        (false, true) => "write",
    };
    let output = run(tool("fio").args([
        "--name=bench",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        &format!("--rw={operation}"),
        &format!("--bs={}", access.block),
        &format!("--iodepth={}", access.depth),
        "--time_based",
        &format!("--runtime={}ms", time.as_millis()),
        "--output-format=json",
    ]))?;
    let side = if access.write { "write" } else { "read" };
    let text = String::from_utf8_lossy(&output.stdout);
    tally_of(&text, side, access.block)
        .ok_or_else(|| Failure::Unavailable(format!("fio: {}", text.lines().next().unwrap_or(""))))
}

/// fio's JSON has one object per direction; its numbers follow on lines of their own.
fn tally_of(json: &str, side: &str, block: u32) -> Option<Tally> {
    let (_, job) = json.split_once(&format!("\"{side}\" : {{"))?;
    let number = |name: &str| {
        let (_, rest) = job.split_once(&format!("\"{name}\" : "))?;
        rest.split([',', '\n']).next()?.trim().parse::<f64>().ok()
    };
    let (operations, rate) = (number("total_ios")?, number("iops")?);
    if operations < 1.0 || rate <= 0.0 {
        return None;
    }
    let operations_whole = operations as u64;
    Some(Tally {
        operations: operations_whole,
        bytes: operations_whole * u64::from(block),
        elapsed: Duration::from_secs_f64(operations / rate),
    })
}

/// nbdcopy: the whole export to nowhere, with its default of connections and requests.
pub(crate) fn copy(uri: &str, size: u64) -> Result<Tally, Failure> {
    copy_with(uri, size, DEFAULT_REQUEST, &[])
}

/// nbdcopy over one connection, with requests of this size and number.
pub(crate) fn copy_as(uri: &str, size: u64, access: Access) -> Result<Tally, Failure> {
    let options = [
        format!("--request-size={}", access.block),
        format!("--requests={}", access.depth),
        "--connections=1".to_owned(),
    ];
    copy_with(uri, size, u64::from(access.block), &options)
}

/// Bytes of a request of nbdcopy, unless given.
const DEFAULT_REQUEST: u64 = 256 * 1024;

fn copy_with(uri: &str, size: u64, request: u64, options: &[String]) -> Result<Tally, Failure> {
    let start = Instant::now();
    run(tool("nbdcopy").args(options).args([uri, "null:"]))?;
    Ok(Tally { operations: size / request, bytes: size, elapsed: start.elapsed() })
}

/// Reads the whole export with nbdcopy and compares every byte with the pattern.
pub(crate) fn verify(uri: &str, pattern: Pattern, size: u64) -> Result<(), Failure> {
    // One connection, for nbd-server breaks off when there are several and they are encrypted.
    let mut child = tool("nbdcopy")
        .args(["--connections=1", uri, "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::io("run", "nbdcopy", &error))?;
    let came = child.stdout.take().map_or(Ok(0), |stdout| stream_holds(stdout, pattern));
    let mut said = String::new();
    if let Some(stderr) = child.stderr.as_mut() {
        stderr.read_to_string(&mut said)?;
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(Failure::Unavailable(format!("nbdcopy: {}", said.trim_end())));
    }
    match came? {
        length if length == size => Ok(()),
        length => Err(Failure::Wrong(format!("nbdcopy: {length} of {size} bytes came"))),
    }
}

/// Connections made and ended, one by one in each of so many processes. Debian's Python is the one
/// that has the module.
pub(crate) fn connects(uri: &str, processes: usize, time: Duration) -> Result<Tally, Failure> {
    let output = run(tool("/usr/bin/python3").args([
        "-c",
        CONNECTS,
        uri,
        &time.as_secs_f64().to_string(),
        &processes.to_string(),
    ]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tally = text.split_once(' ').and_then(|(count, seconds)| {
        let seconds: f64 = seconds.trim().parse().ok()?;
        let operations = count.parse().ok()?;
        Some(Tally { operations, bytes: 0, elapsed: Duration::try_from_secs_f64(seconds).ok()? })
    });
    tally.ok_or_else(|| Failure::Unavailable(last_line(&output)))
}

/// A program that is ended if a server leaves it waiting.
fn tool(name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["60", name]);
    command
}

fn run(command: &mut Command) -> Result<Output, Failure> {
    let name = command.get_args().nth(1).unwrap_or_default().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| Failure::io("run", &name, &error))?;
    if !output.status.success() {
        return Err(Failure::Unavailable(format!("{name}: {}", last_line(&output))));
    }
    Ok(output)
}

fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().last().map_or_else(|| output.status.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_right_direction_are_read() {
        let json = r#"{ "jobs" : [ { "read" : {
            "iops" : 100.0,
            "total_ios" : 50,
          },
          "write" : {
            "iops" : 0.0,
            "total_ios" : 0,
          } } ] }"#;
        let tally = tally_of(json, "read", 4096).unwrap();
        assert_eq!((tally.operations, tally.bytes), (50, 204_800));
        assert_eq!(tally.elapsed, Duration::from_millis(500));
        assert!(tally_of(json, "write", 4096).is_none());
    }
}
