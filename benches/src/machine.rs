//! What the numbers were measured on: the kind of machine, and nothing that tells one host from
//! another of its kind.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A kind of machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// For names of files: small letters, digits, "-" and ".".
    pub(crate) kind: String,
    /// The same in words.
    pub(crate) text: String,
}

impl Machine {
    /// The machine that this runs on.
    pub(crate) fn this() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let is_virtual = ["/proc/device-tree/hypervisor", "/sys/hypervisor/type"];
        Machine::of(
            &read("/proc/cpuinfo"),
            std::thread::available_parallelism().map_or(1, usize::from),
            &read("/proc/sys/kernel/osrelease"),
            is_virtual.iter().any(|path| Path::new(path).exists()),
        )
    }

    fn of(cpuinfo: &str, processors: usize, release: &str, is_virtual: bool) -> Machine {
        let fact = |name: &str| {
            let value = |line: &str| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name && !value.trim().is_empty()).then(|| value.trim().to_owned())
            };
            cpuinfo.lines().find_map(value)
        };
        // Arm has numbers in place of names.
        let arm = || Some(format!("Arm {} {}", fact("CPU implementer")?, fact("CPU part")?));
        let model =
            fact("model name").or_else(arm).unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let model = without_decoration(&model);
        let vendor = match fact("vendor_id").as_deref() {
            Some("AuthenticAMD") => Some("AMD".to_owned()),
            Some("GenuineIntel") => Some("Intel".to_owned()),
            other => other.map(str::to_owned),
        };
        let vendor = vendor.filter(|vendor| !model.contains(vendor.as_str()));
        let name = vendor.map_or_else(|| model.clone(), |vendor| format!("{vendor} {model}"));
        let family = fact("cpu family");
        let mut numbers = release.trim().split('.');
        let kernel: Vec<&str> = numbers.by_ref().take(2).collect();
        let kernel = kernel.join(".");
        let hypervisor = fact("flags")
            .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"))
            || is_virtual;
        let family_text =
            family.as_ref().map_or_else(String::new, |family| format!(", family {family}"));
        let family_name = family.map_or_else(String::new, |family| format!("-f{family}"));
        let plural = if processors == 1 { "processor" } else { "processors" };
        let (virtual_text, virtual_name) =
            if hypervisor { (", virtual machine", "-vm") } else { ("", "") };
        Machine {
            kind: format!(
                "{}{family_name}-{processors}cpu-linux{kernel}{virtual_name}",
                file_name(&name)
            ),
            text: format!(
                "{name}{family_text}, {processors} {plural}, Linux {kernel}{virtual_text}"
            ),
        }
    }
}

/// The name of a processor without trade marks, its frequency and "CPU".
fn without_decoration(model: &str) -> String {
    let model = model.split(" @ ").next().unwrap_or(model);
    let model = model.replace("(R)", "").replace("(TM)", "").replace("(tm)", "");
    let words = model.split_whitespace().filter(|word| !["CPU", "Processor"].contains(word));
    words.collect::<Vec<_>>().join(" ")
}

fn file_name(text: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = text.chars().map(keep).collect();
    text.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

/// How many tasks wanted to run, on average of the last minute: other work makes the numbers noisy.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// How TCP decides when to send, by the kernel's name for it: tcp(7), tcp_congestion_control.
pub(crate) fn congestion_control() -> String {
    let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    text.map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned())
}

/// Today in UTC, YYYY-MM-DD.
pub(crate) fn date() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    date_of(now / 86400)
}

/// The date so many days after 1970-01-01.
fn date_of(days: u64) -> String {
    // Years that begin in March, so that a leap day is the last day; 400 of them have 146097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_what_many_machines_share_and_no_more() {
        let amd = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel name\t: AMD EPYC\nflags\t\t: fpu hypervisor\n";
        let machine = Machine::of(amd, 2, "6.18.44-host17\n", false);
        assert_eq!(machine.kind, "amd-epyc-f25-2cpu-linux6.18-vm");
        assert_eq!(machine.text, "AMD EPYC, family 25, 2 processors, Linux 6.18, virtual machine");
        let intel = "vendor_id : GenuineIntel\ncpu family : 6\nmodel name : Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz\nflags : fpu\n";
        let machine = Machine::of(intel, 12, "6.1.0-18-amd64", false);
        assert_eq!(machine.kind, "intel-core-i7-8700-f6-12cpu-linux6.1");
        let arm = "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        let machine = Machine::of(arm, 1, "6.6.1", true);
        assert_eq!(machine.kind, "arm-0x41-0xd0c-1cpu-linux6.6-vm");
        assert_eq!(machine.text, "Arm 0x41 0xd0c, 1 processor, Linux 6.6, virtual machine");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let days = [0, 59, 789, 11_016, 20_786];
        let dates = ["1970-01-01", "1970-03-01", "1972-02-29", "2000-02-29", "2026-11-29"];
        assert_eq!(days.map(date_of), dates);
    }
}
