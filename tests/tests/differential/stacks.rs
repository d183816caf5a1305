//! Filters on top of each other, as people write them, and each under many requests of many
//! clients at once.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;
use nbdkit_tests::workout::{exercise, stress};

const FILE: [&str; 2] = ["file", "{dir}/disk"];

fn disk(dir: &nbdkit_tests::TempDir) {
    let bytes: Vec<u8> = (0..1_u32 << 16).map(|i| (i / 512) as u8).collect();
    std::fs::write(dir.path().join("disk"), bytes).unwrap();
}

#[test]
fn stacks_of_filters() {
    let stacks: [&[&str]; 6] = [
        &["--filter=cacheextents", "--filter=retry"],
        &["--filter=blocksize", "--filter=cow", "minblock=4k"],
        &["--filter=blocksize-policy", "--filter=blocksize", "blocksize-minimum=1k", "minblock=4k"],
        &["--filter=cache", "--filter=offset", "range=32k", "cache=writethrough"],
        &["--filter=multi-conn", "--filter=cache", "multi-conn-track-dirty=fast"],
        &["--filter=nofilter", "--filter=blocksize", "--filter=offset", "minblock=4k", "offset=0"],
    ];
    for_each(&stacks, |stack| {
        for readonly in [&[][..], &["-r"]] {
            let is_filter = |argument: &&&str| argument.starts_with("--");
            let filters = stack.iter().filter(is_filter).copied();
            let parameters = stack.iter().filter(|it| !is_filter(it)).copied();
            let arguments: Vec<_> =
                readonly.iter().copied().chain(filters).chain(FILE).chain(parameters).collect();
            let row = Row::new(row_name!(), &arguments).variant(stack[0]).setup(disk);
            row.compare(exercise);
        }
    });
}

#[test]
fn many_requests_at_once_lose_nothing() {
    let stacks: [&[&str]; 8] = [
        &["--filter=blocksize", "minblock=64k", "maxdata=64k"],
        &["--filter=blocksize", "minblock=16k"],
        &["--filter=cache", "cache-max-size=1M"],
        &["--filter=cache", "cache=writethrough", "cache-max-size=1M", "cache-min-block-size=16k"],
        &["--filter=cache", "cache-on-read=true"],
        &["--filter=cacheextents"],
        &["--filter=multi-conn", "multi-conn-mode=emulate"],
        &["--filter=multi-conn", "--filter=cache", "--filter=blocksize", "minblock=64k"],
    ];
    for_each(&stacks, |stack| {
        for isolation in ["--isolation=connection", "--isolation=shared"] {
            let filters = stack.iter().filter(|it| it.starts_with("--")).copied();
            let parameters = stack.iter().filter(|it| !it.starts_with("--")).copied();
            let arguments: Vec<_> = [isolation]
                .into_iter()
                .chain(filters)
                .chain(["memory", "64M"])
                .chain(parameters)
                .collect();
            stress(&arguments);
        }
    });
}
