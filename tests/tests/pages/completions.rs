//! Completion in each shell, with the server that has been built: options and values are read off
//! its help, so what can go stale is the names of built-in plugins and filters.

use std::path::Path;
use std::process::Command;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::run;
use nbdkit_tests::{TempDir, tools};

use crate::modules::built_in;
use crate::{DEADLINE, assert_none, root};

/// What is typed, and what it becomes; where there are several ways to go on, all of them.
const COMPLETED: &[(&str, &[&str])] = &[
    ("--tls=r", &["require"]),
    ("--tls=o", &["off", "on"]),
    ("--exit-w", &["--exit-with-parent"]),
    ("--sandb", &["--sandbox="]),
    ("--ipv", &["--ipv4-only", "--ipv6-only"]),
    ("-u roo", &["root"]),
    ("-g roo", &["root"]),
    ("--filter=multi", &["multi-conn"]),
    ("--filter=xo", &["xor"]),
    ("partitioni", &["partitioning"]),
    ("spl", &["split"]),
    // A plugin of plugindir.
    ("insta", &["installed"]),
    ("file fad", &["fadvise="]),
    ("file dir-links=f", &["false"]),
    ("partitioning partition-type=", &["gpt", "mbr"]),
    ("--filter=cow file cow-max-", &["cow-max-connection=", "cow-max-total="]),
    ("--filter=cow file cow-on-cache=t", &["true"]),
    // The argument of an option is not the plugin.
    ("-P zero memory allo", &["allocator="]),
    // Files.
    ("-P only-fi", &["only-file"]),
    ("file only-fi", &["only-file"]),
    ("file file=only-fi", &["only-file"]),
];

/// A server that says that plugins are in `dir`; everything else it asks the real one.
fn write_server(dir: &Path) {
    let real = Binary::ours().path().display().to_string();
    let (plugins, name) = (dir.join("plugins"), dir.join("nbdkit"));
    std::fs::create_dir(&plugins).expect("a directory");
    std::fs::write(plugins.join("nbdkit-installed-plugin.so"), "").expect("a file");
    std::fs::write(dir.join("only-file"), "").expect("a file");
    let plugins = plugins.display();
    let text = format!(
        "#!/bin/sh\ncase $* in\n--dump-config) echo plugindir={plugins}; echo filterdir=/nowhere ;;\n*) exec {real} \"$@\" ;;\nesac\n"
    );
    std::fs::write(&name, text).expect("a file");
    let status = Command::new("chmod").arg("+x").arg(&name).status();
    assert!(status.expect("chmod").success());
}

/// A command in `dir`, with that server first in the path.
fn shell(program: &str, arguments: &[&str], dir: &Path) -> Option<String> {
    let is_there = tools::run(program, &["--version"], dir);
    is_there.as_ref()?;
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir).env("PATH", path).env("HOME", dir);
    let command = command.env("TERM", "dumb").env("LC_ALL", "C.UTF-8");
    let finished = run(command, DEADLINE);
    assert!(finished.status.success(), "{program}: {}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.is_empty(), "{program}: {}", finished.stderr);
    Some(finished.stdout)
}

/// Compares the lines that a shell printed, one for each of [`COMPLETED`], words between blanks.
fn check(printed: &str, expected: impl Fn(&str, &[&str]) -> Vec<String>) {
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), COMPLETED.len(), "{printed}");
    let mut wrong = Vec::new();
    for (line, (typed, completed)) in lines.iter().zip(COMPLETED) {
        let mut found: Vec<&str> = line.split_ascii_whitespace().collect();
        found.sort_unstable();
        let expected = expected(typed, completed);
        if found != expected {
            wrong.push(format!("{typed}: {found:?}, not {expected:?}"));
        }
    }
    assert_none("completed wrongly", &wrong);
}

#[test]
fn bash_completes() {
    let dir = TempDir::new();
    write_server(dir.path());
    let mut script = format!(". {}/completions/nbdkit.bash\n", root().display());
    script.push_str("try() { COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)); _nbdkit; echo \"${COMPREPLY[*]}\"; }\n");
    for (typed, _) in COMPLETED {
        // bash makes words of equals signs, and an empty one where there is nothing behind.
        let words = typed.replace('=', " = ");
        let end = if typed.ends_with('=') { "''" } else { "" };
        script.push_str(&format!("try nbdkit {words} {end}\n"));
    }
    let Some(printed) = shell("bash", &["-c", &script], dir.path()) else { return };
    check(&printed, |_, completed| completed.iter().map(|word| (*word).to_owned()).collect());
}

#[test]
fn fish_completes() {
    let dir = TempDir::new();
    write_server(dir.path());
    let mut script = format!("source {}/completions/nbdkit.fish\n", root().display());
    for (typed, _) in COMPLETED {
        // Behind a tab is the description.
        let complete = format!("complete -C 'nbdkit {typed}' | string replace -r '\\t.*' ''");
        script.push_str(&format!("echo ({complete})\n"));
    }
    let Some(printed) = shell("fish", &["--no-config", "-c", &script], dir.path()) else { return };
    // fish prints the whole word, and no equals sign behind an option.
    check(&printed, |typed, completed| {
        let word = typed.rsplit(' ').next().unwrap_or_default();
        let before = word.split_once('=').map(|(key, _)| format!("{key}="));
        let before = before.unwrap_or_default();
        let is_option = word.starts_with("--") && before.is_empty();
        let shown = |word: &&str| match is_option {
            true => word.trim_end_matches('=').to_owned(),
            false => format!("{before}{word}"),
        };
        completed.iter().map(shown).collect()
    });
}

/// In an interactive zsh, which completes what has one way to go on, and then shows its line.
#[test]
fn zsh_completes() {
    let dir = TempDir::new();
    write_server(dir.path());
    let setup = [
        "PS1=; unsetopt prompt_sp",
        &format!("fpath=({}/completions $fpath)", root().display()),
        "autoload -Uz compinit && compinit -u -D",
        "show() { print -r -- \"<$BUFFER>\"; BUFFER= }",
        "zle -N show; bindkey '^O' show; bindkey '^I' complete-word",
        // So that what is typed is not yet the answer.
        "echo rea''dy",
    ];
    let mut script = String::from("zmodload zsh/zpty\nzpty shell 'zsh -f -i'\n");
    script.push_str(&format!("zpty -w shell {}\n", quoted(&setup.join("; "))));
    script.push_str("zpty -r shell answer '*ready*'\n");
    for (typed, completed) in COMPLETED {
        match completed.len() {
            1 => {
                let line = quoted(&format!("nbdkit {typed}"));
                script.push_str(&format!("zpty -n -w shell {line}$'\\t\\x0f'\n"));
                script.push_str("zpty -r shell answer '*<*>*'\n");
                script.push_str("print -r -- ${${answer##*<}%%>*}\n");
            }
            _ => script.push_str("echo\n"),
        }
    }
    let Some(printed) = shell("zsh", &["-f", "-c", &script], dir.path()) else { return };
    check(&printed, |typed, completed| {
        let [completed] = completed else { return Vec::new() };
        let end = typed.rfind(['=', ' ']).map_or(0, |at| at + 1);
        let line = format!("nbdkit {}{completed}", &typed[..end]);
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        words.sort_unstable();
        words
    });
}

/// A word for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[test]
fn completions_have_the_names_of_all_built_in_plugins_and_filters() {
    let mut wrong = Vec::new();
    for file in ["nbdkit.bash", "_nbdkit", "nbdkit.fish"] {
        let text = std::fs::read_to_string(root().join("completions").join(file)).expect("a file");
        for (is_filter, what) in [(false, "plugins"), (true, "filters")] {
            let (_, rest) = text.split_once(&format!("_nbdkit_{what}")).expect("a list");
            // Behind the name is `=(`, `='` or a blank; lines that begin with blanks follow.
            let lines = rest.lines().skip(1).take_while(|line| line.starts_with("    "));
            let found: Vec<&str> = lines
                .flat_map(str::split_ascii_whitespace)
                .map(|word| word.trim_end_matches(['\'', '\\']))
                .filter(|word| !word.is_empty())
                .collect();
            let modules = built_in();
            let known = modules.iter().filter(|module| module.is_filter == is_filter);
            let known: Vec<&str> = known.map(|module| &*module.name).collect();
            if found != known {
                wrong.push(format!("{file}: {what}: {found:?}, not {known:?}"));
            }
        }
    }
    assert_none("names of built-in plugins and filters", &wrong);
}
