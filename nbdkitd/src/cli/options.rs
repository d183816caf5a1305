//! The options, defined once: spellings, arguments and help text.
//!
//! The parser, `--help`, `--long-options` and `--short-options` are all read off [`OPTIONS`], so an
//! option that is not in this table does not exist. Used by the listener; data only, trusts
//! nothing. nbdkit(1), "Global options".

#![forbid(unsafe_code)]

/// The widest line of the usage summary, in columns.
const USAGE_WIDTH: usize = 58;

/// An option: one variant for each row of [`OPTIONS`], which describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OptionId {
    AllowNet,
    AllowPath,
    BusyPoll,
    Debug,
    DumpConfig,
    DumpPlugin,
    ExitWithParent,
    ExportName,
    Filter,
    Foreground,
    Group,
    Help,
    IpAddr,
    Ipv4Only,
    Ipv6Only,
    Isolation,
    KeepAlive,
    ListenerUser,
    Log,
    LogConnections,
    LongOptions,
    MaskHandshake,
    MaxConnections,
    MaxConnectionsPerPeer,
    Name,
    NewStyle,
    NoKeepAlive,
    NoMetaContexts,
    NoStructuredReplies,
    OldStyle,
    ParkIdle,
    PidFile,
    Port,
    PrintUri,
    ReadOnly,
    Run,
    Sandbox,
    SelinuxLabel,
    ShortOptions,
    Single,
    Swap,
    Threads,
    Timeout,
    Tls,
    TlsCertificates,
    TlsCrlExpiry,
    TlsMinVersion,
    TlsPriority,
    TlsPsk,
    TlsVerifyPeer,
    Unix,
    User,
    Verbose,
    Version,
    Vsock,
}

/// Whether an option takes an argument, and how the usage summary writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Argument {
    /// The option is a switch.
    None,
    /// Required; written after a blank.
    Spaced(&'static str),
    /// Required; written after an equals sign.
    Equals(&'static str),
}

impl Argument {
    /// Whether the parser must find an argument.
    pub(crate) fn is_required(self) -> bool {
        !matches!(self, Self::None)
    }
}

/// One option.
#[derive(Debug)]
pub(crate) struct OptionSpec {
    /// What it is.
    pub(crate) id: OptionId,
    /// The letter, if it has one.
    pub(crate) short: Option<char>,
    /// Every long spelling, without the dashes; the first is the one that messages prefer.
    pub(crate) long: &'static [&'static str],
    /// The long spellings that the usage summary shows; empty if the option is shown elsewhere or
    /// not at all.
    shown: &'static [&'static str],
    /// Its argument.
    pub(crate) argument: Argument,
    /// What it does, in one line; empty for options that only scripts use.
    help: &'static str,
}

const fn row(
    id: OptionId,
    short: Option<char>,
    long: &'static [&'static str],
    shown: &'static [&'static str],
    argument: Argument,
    help: &'static str,
) -> OptionSpec {
    OptionSpec { id, short, long, shown, argument, help }
}

/// Every option, in the order in which listings show them.
#[rustfmt::skip]
pub(crate) const OPTIONS: &[OptionSpec] = &[
    row(OptionId::Ipv4Only, Some('4'), &["ipv4-only"], &["ipv4-only"],
        Argument::None, "listen on or resolve only IPv4 addresses"),
    row(OptionId::Ipv6Only, Some('6'), &["ipv6-only"], &["ipv6-only"],
        Argument::None, "listen on or resolve only IPv6 addresses"),
    row(OptionId::AllowNet, None, &["allow-net"], &["allow-net"],
        Argument::None, "let a strict sandbox make connections"),
    row(OptionId::AllowPath, None, &["allow-path"], &["allow-path"],
        Argument::Equals("PATH[:rw]"), "let a strict sandbox read, or read and write, PATH; repeatable"),
    row(OptionId::BusyPoll, None, &["busy-poll"], &["busy-poll"],
        Argument::Equals("MICROSECONDS"), "longest poll for the next request (default 50, 0: none)"),
    row(OptionId::Debug, Some('D'), &["debug"], &["debug"],
        Argument::Spaced("PLUGIN|FILTER|nbdkit.FLAG=N"), "set a debug flag to the integer N"),
    row(OptionId::DumpConfig, None, &["dump-config"], &[],
        Argument::None, "print the compile-time configuration and exit"),
    row(OptionId::DumpPlugin, None, &["dump-plugin"], &[],
        Argument::None, "print information about the plugin and exit"),
    row(OptionId::ExitWithParent, None, &["exit-with-parent"], &["exit-with-parent"],
        Argument::None, "exit when the parent process exits"),
    row(OptionId::ExportName, Some('e'), &["export", "export-name", "exportname"], &["exportname"],
        Argument::Spaced("EXPORTNAME"), "the export name in the URI and for --run"),
    row(OptionId::Filter, None, &["filter"], &["filter"],
        Argument::Equals("FILTER ..."), "put a filter in front of the plugin; repeatable"),
    row(OptionId::Foreground, Some('f'), &["foreground", "no-fork"], &["foreground"],
        Argument::None, "stay in the foreground"),
    row(OptionId::Group, Some('g'), &["group"], &["group"],
        Argument::Spaced("GROUP"), "change to this group after start"),
    row(OptionId::Help, None, &["help"], &[],
        Argument::None, "print this text, and that of the plugin and filters, and exit"),
    row(OptionId::IpAddr, Some('i'), &["ip-addr", "ipaddr"], &["ipaddr"],
        Argument::Spaced("IPADDR"), "listen on this address only"),
    row(OptionId::Isolation, None, &["isolation"], &["isolation"],
        Argument::Equals("connection|shared"), "one process for each client, or one for all of them"),
    row(OptionId::KeepAlive, None, &["keepalive", "keep-alive"], &["keepalive"],
        Argument::None, "probe idle TCP connections at the intervals of tcp(7)"),
    row(OptionId::ListenerUser, None, &["listener-user"], &["listener-user"],
        Argument::Equals("USER"), "the user of the process that accepts clients"),
    row(OptionId::Log, None, &["log"], &["log"],
        Argument::Equals("stderr|syslog|journal|null|/PATH"), "where error messages go"),
    row(OptionId::LogConnections, None, &["log-connections"], &["log-connections"],
        Argument::None, "log the end of each connection"),
    row(OptionId::LongOptions, None, &["long-options"], &[],
        Argument::None, ""),
    row(OptionId::MaskHandshake, None, &["mask-handshake"], &["mask-handshake"],
        Argument::Equals("MASK"), "mask off features of the newstyle handshake"),
    row(OptionId::MaxConnections, None, &["max-connections"], &["max-connections"],
        Argument::Equals("N"), "most clients at a time (default 1024, 0: no limit)"),
    row(OptionId::MaxConnectionsPerPeer, None, &["max-connections-per-peer"], &["max-connections-per-peer"],
        Argument::Equals("N"), "most of one address or user (0: no limit)"),
    row(OptionId::Name, None, &["name"], &["name"],
        Argument::Equals("NAME"), "name this server in its messages"),
    row(OptionId::NewStyle, Some('n'), &["new-style", "newstyle"], &["newstyle"],
        Argument::None, "use the newstyle protocol (the default)"),
    row(OptionId::NoKeepAlive, None, &["no-keepalive"], &["no-keepalive"],
        Argument::None, "do not probe idle TCP connections"),
    row(OptionId::NoMetaContexts, None, &["no-mc", "no-meta-contexts"], &["no-mc", "no-meta-contexts"],
        Argument::None, "do not advertise meta contexts"),
    row(OptionId::NoStructuredReplies, None, &["no-sr", "no-structured-replies"], &["no-sr", "no-structured-replies"],
        Argument::None, "do not advertise structured replies"),
    row(OptionId::OldStyle, Some('o'), &["old-style", "oldstyle"], &["oldstyle"],
        Argument::None, "use the oldstyle protocol"),
    row(OptionId::ParkIdle, None, &["park-idle"], &["park-idle"],
        Argument::Equals("SECONDS"), "idle clients give up their processes then (default 5, 0: never)"),
    row(OptionId::PidFile, Some('P'), &["pid-file", "pidfile"], &["pidfile"],
        Argument::Spaced("PIDFILE"), "write the process ID here when ready"),
    row(OptionId::Port, Some('p'), &["port"], &["port"],
        Argument::Spaced("PORT"), "TCP or vsock port (default 10809)"),
    row(OptionId::PrintUri, None, &["print-uri", "print-url", "show-uri", "show-url"], &["print-uri"],
        Argument::None, "print the URI of the server"),
    row(OptionId::ReadOnly, Some('r'), &["read-only", "readonly"], &["readonly"],
        Argument::None, "serve read-only"),
    row(OptionId::Run, None, &["run"], &["run"],
        Argument::Spaced("'COMMAND ARGS ...'"), "serve while this shell command runs"),
    row(OptionId::Sandbox, None, &["sandbox"], &["sandbox"],
        Argument::Equals("strict|programs|compat|off"), "how tightly the serving processes are confined"),
    row(OptionId::SelinuxLabel, None, &["selinux-label"], &["selinux-label"],
        Argument::Equals("LABEL"), "SELinux label of the listening socket"),
    row(OptionId::ShortOptions, None, &["short-options"], &[],
        Argument::None, ""),
    row(OptionId::Single, Some('s'), &["single", "stdin"], &["single"],
        Argument::None, "serve one client on stdin and stdout"),
    row(OptionId::Swap, None, &["swap"], &["swap"],
        Argument::None, "lock into memory, for use as a swap device"),
    row(OptionId::Threads, Some('t'), &["threads"], &["threads"],
        Argument::Spaced("THREADS"), "requests handled at once for each connection"),
    row(OptionId::Timeout, None, &["timeout", "time-out"], &["timeout"],
        Argument::Equals("DELAY"), "longest time a handshake may take"),
    row(OptionId::Tls, None, &["tls"], &["tls"],
        Argument::Equals("off|on|require"), "disable, allow or require TLS"),
    row(OptionId::TlsCertificates, None, &["tls-certificates"], &["tls-certificates"],
        Argument::Equals("/path/to/certificates"), "directory of the TLS certificates"),
    row(OptionId::TlsCrlExpiry, None, &["tls-crl-expiry"], &["tls-crl-expiry"],
        Argument::Equals("warn|enforce"), "what a revocation list is worth that is out of date"),
    row(OptionId::TlsMinVersion, None, &["tls-min-version"], &["tls-min-version"],
        Argument::Equals("1.2|1.3"), "lowest TLS version that is allowed"),
    row(OptionId::TlsPriority, None, &["tls-priority"], &["tls-priority"],
        Argument::Equals("PRIORITY"), "which TLS versions and ciphers are allowed"),
    row(OptionId::TlsPsk, None, &["tls-psk"], &["tls-psk"],
        Argument::Equals("/path/to/pskfile"), "file of the TLS pre-shared keys"),
    row(OptionId::TlsVerifyPeer, None, &["tls-verify-peer"], &["tls-verify-peer"],
        Argument::None, "ask clients for a certificate and check it"),
    row(OptionId::Unix, Some('U'), &["unix"], &["unix"],
        Argument::Spaced("SOCKET|-"), "listen on this Unix socket, or on a private one (-)"),
    row(OptionId::User, Some('u'), &["user"], &["user"],
        Argument::Spaced("USER"), "change to this user after start"),
    row(OptionId::Verbose, Some('v'), &["verbose"], &["verbose"],
        Argument::None, "print debug messages to standard error"),
    row(OptionId::Version, Some('V'), &["version"], &[],
        Argument::None, "print the version and exit"),
    row(OptionId::Vsock, None, &["vsock"], &["vsock"],
        Argument::None, "listen on AF_VSOCK instead of TCP"),
];

impl OptionSpec {
    /// Whether listings leave it out: the two options that print the listings.
    fn is_internal(&self) -> bool {
        matches!(self.id, OptionId::LongOptions | OptionId::ShortOptions)
    }

    /// How the usage summary writes it, as in `[-e|--exportname EXPORTNAME]`.
    fn usage(&self) -> Option<String> {
        if self.shown.is_empty() {
            return None;
        }
        let mut spellings: Vec<String> =
            self.short.iter().map(|short| format!("-{short}")).collect();
        spellings.extend(self.shown.iter().map(|long| format!("--{long}")));
        let spellings = spellings.join("|");
        Some(match self.argument {
            Argument::None => format!("[{spellings}]"),
            Argument::Spaced(argument) => format!("[{spellings} {argument}]"),
            Argument::Equals(argument) => format!("[{spellings}={argument}]"),
        })
    }

    /// Two columns for `--help`.
    fn described(&self) -> String {
        let long = self.shown.first().or(self.long.first()).copied().unwrap_or_default();
        let short = self.short.map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
        let argument = match self.argument {
            Argument::None => String::new(),
            Argument::Spaced(argument) => format!(" {argument}"),
            Argument::Equals(argument) => format!("={argument}"),
        };
        let spelling = format!("  {short}--{long}{argument}");
        let help = self.help;
        if spelling.len() < 35 {
            format!("{spelling:<36}{help}\n")
        } else {
            format!("{spelling}\n{:36}{help}\n", "")
        }
    }
}

/// The option of a letter.
pub(crate) fn by_short(letter: char) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|option| option.short == Some(letter))
}

/// What a long spelling, perhaps shortened, stands for.
#[derive(Debug)]
pub(crate) enum LongMatch {
    /// One option, and its spelling in full.
    Option(&'static OptionSpec, &'static str),
    /// More than one: the spellings that getopt_long would offer.
    Ambiguous(Vec<&'static str>),
    /// None.
    Unknown,
}

/// Resolves a long spelling as getopt_long does: an exact match wins, then a beginning that fits
/// one option only.
///
/// Synonyms of one option do not make a beginning ambiguous.
pub(crate) fn by_long(given: &str) -> LongMatch {
    let spellings =
        || OPTIONS.iter().flat_map(|option| option.long.iter().map(move |long| (option, *long)));
    if let Some((option, long)) = spellings().find(|(_, long)| *long == given) {
        return LongMatch::Option(option, long);
    }
    let mut candidates = spellings().filter(|(_, long)| long.starts_with(given));
    let Some((first, first_long)) = candidates.next() else { return LongMatch::Unknown };
    let others: Vec<&str> =
        candidates.filter(|(option, _)| option.id != first.id).map(|(_, long)| long).collect();
    if others.is_empty() {
        return LongMatch::Option(first, first_long);
    }
    LongMatch::Ambiguous([&[first_long][..], &others].concat())
}

/// The text of `--long-options`: every long spelling on a line of its own.
pub(crate) fn long_options() -> String {
    OPTIONS
        .iter()
        .filter(|option| !option.is_internal())
        .flat_map(|option| option.long)
        .map(|long| format!("--{long}\n"))
        .collect()
}

/// The text of `--short-options`: every letter on a line of its own.
pub(crate) fn short_options() -> String {
    let mut letters: Vec<char> = OPTIONS.iter().filter_map(|option| option.short).collect();
    letters.sort_by_key(|letter| (letter.to_ascii_lowercase(), letter.is_ascii_uppercase()));
    letters.into_iter().map(|letter| format!("-{letter}\n")).collect()
}

/// The usage summary: what follows a token that getopt refuses, and what `--help` begins with.
pub(crate) fn usage() -> String {
    format!("{}\nPlease read the nbdkit(1) manual page for full usage.\n", synopsis())
}

/// The text of `--help`, without the part about the plugin and the filters.
pub(crate) fn help() -> String {
    let options: String = OPTIONS
        .iter()
        .filter(|option| !option.help.is_empty())
        .map(OptionSpec::described)
        .collect();
    format!(
        "{}\nOptions:\n{options}\nPlease read the nbdkit(1) manual page for full usage.\n",
        synopsis()
    )
}

fn synopsis() -> String {
    let mut lines = String::new();
    let mut line = "nbdkit".to_owned();
    for option in OPTIONS.iter().filter_map(OptionSpec::usage) {
        if line.len() + 1 + option.len() > USAGE_WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            line = " ".repeat("nbdkit".len());
        }
        line.push(' ');
        line.push_str(&option);
    }
    format!(
        "{lines}{line}\n       PLUGIN [[KEY=]VALUE [KEY=VALUE [...]]]\n\n\
         nbdkit --dump-config\n\nnbdkit PLUGIN --dump-plugin\n\nnbdkit --help\n\nnbdkit [-V|--version]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_stands_for_two_options() {
        let mut long: Vec<&str> = OPTIONS.iter().flat_map(|option| option.long).copied().collect();
        let mut short: Vec<char> = OPTIONS.iter().filter_map(|option| option.short).collect();
        let counts = (long.len(), short.len());
        long.sort_unstable();
        long.dedup();
        short.sort_unstable();
        short.dedup();
        assert_eq!((long.len(), short.len()), counts);
    }

    #[test]
    fn shown_spellings_are_spellings() {
        for option in OPTIONS {
            for shown in option.shown {
                assert!(option.long.contains(shown), "{shown}");
            }
        }
    }

    #[test]
    fn short_options_are_listed_in_the_order_of_nbdkit() {
        let letters: String =
            short_options().chars().filter(|c| !matches!(c, '-' | '\n')).collect();
        assert_eq!(letters, "46DefginopPrstuUvV");
    }

    #[test]
    fn long_options_list_every_spelling_but_the_listings_themselves() {
        let listed = long_options();
        for spelling in
            ["--ipv4-only", "--no-fork", "--show-url", "--time-out", "--keep-alive", "--isolation"]
        {
            assert!(listed.lines().any(|line| line == spelling), "{spelling}");
        }
        assert!(!listed.contains("-options"));
        let nbdkits = listed.replace("--allow-net\n--allow-path\n--busy-poll\n", "");
        assert!(
            nbdkits
                .starts_with("--ipv4-only\n--ipv6-only\n--debug\n--dump-config\n--dump-plugin\n")
        );
    }

    #[test]
    fn the_usage_summary_is_laid_out_like_that_of_nbdkit() {
        let usage = usage();
        let beginning = "nbdkit [-4|--ipv4-only] [-6|--ipv6-only] [--allow-net]\n       \
                         [--allow-path=PATH[:rw]] [--busy-poll=MICROSECONDS]\n       \
                         [-D|--debug PLUGIN|FILTER|nbdkit.FLAG=N]\n       \
                         [--exit-with-parent] [-e|--exportname EXPORTNAME]\n       \
                         [--filter=FILTER ...] [-f|--foreground]\n       \
                         [-g|--group GROUP] [-i|--ipaddr IPADDR]\n";
        assert!(usage.starts_with(beginning), "{usage}");
        assert!(usage.ends_with(
            "       PLUGIN [[KEY=]VALUE [KEY=VALUE [...]]]\n\nnbdkit --dump-config\n\n\
             nbdkit PLUGIN --dump-plugin\n\nnbdkit --help\n\nnbdkit [-V|--version]\n\n\
             Please read the nbdkit(1) manual page for full usage.\n"
        ));
    }

    #[test]
    fn help_describes_every_option_for_people() {
        let help = help();
        for option in OPTIONS.iter().filter(|option| !option.is_internal()) {
            assert!(!option.help.is_empty());
            assert!(help.contains(option.help), "{}", option.help);
        }
        assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    }

    #[test]
    fn a_beginning_is_enough_when_it_fits_one_option() {
        for (given, full) in [
            ("read", "read-only"), // read-only and readonly are one option
            ("vers", "version"),
            ("exp", "export"),
            ("no-s", "no-sr"),
            ("tls", "tls"), // exact, although six others begin with it
            ("long", "long-options"),
            ("time", "timeout"),
        ] {
            let LongMatch::Option(_, long) = by_long(given) else { panic!("{given}") };
            assert_eq!(long, full);
        }
    }

    #[test]
    fn an_ambiguous_beginning_lists_the_candidates() {
        for (given, candidates) in [
            ("r", &["read-only", "run"][..]),
            ("dump", &["dump-config", "dump-plugin"]),
            ("ip", &["ipv4-only", "ipv6-only", "ip-addr", "ipaddr"]),
            (
                "no",
                &[
                    "no-fork",
                    "no-keepalive",
                    "no-mc",
                    "no-meta-contexts",
                    "no-sr",
                    "no-structured-replies",
                ],
            ),
        ] {
            let LongMatch::Ambiguous(found) = by_long(given) else { panic!("{given}") };
            assert_eq!(found, candidates);
        }
        assert!(matches!(by_long("nosuch"), LongMatch::Unknown));
        assert!(matches!(by_long(""), LongMatch::Ambiguous(_)));
    }
}
