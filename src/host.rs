//! The memory of the machine that this process runs on.

/// What is needed beside the weights while they are read: the blocks of a matrix that are converted, stacks of threads,
/// and the device's own tables.
const BESIDE: u64 = 128 << 20;

/// The most bytes of weights that this process can hold: the memory of the machine with its swap, or what the limit
/// of the process leaves. What other processes use and the limits of containers are not known here. `None` where the
/// system does not tell. A process that takes more is ended by the system in the middle of its work, or ends itself
/// without an error.
pub(crate) fn room_for_weights() -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
    room(&read("meminfo"), &read("self/limits"), &read("self/status"))
}

/// The same, from the texts of `/proc/meminfo`, `/proc/self/limits` and `/proc/self/status`.
fn room(machine: &str, limits: &str, process: &str) -> Option<u64> {
    // The value of a line such as `MemTotal:       24105988 kB`.
    let kilobytes = |text: &str, name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
    };
    let all = kilobytes(machine, "MemTotal").map(|memory| memory + kilobytes(machine, "SwapTotal").unwrap_or(0));
    // The first number is the limit that holds; without a limit there is the word `unlimited`.
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
    let limit: Option<u64> = limit.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let left = limit.map(|limit| limit.saturating_sub(kilobytes(process, "VmSize").unwrap_or(0) + BESIDE));
    [all, left].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_the_machine_and_the_limit_counts() {
        let machine = "MemTotal:       1000000 kB\nMemFree:          100 kB\nSwapTotal:        24000 kB\n";
        let unlimited = "Limit                     Soft Limit           Hard Limit           Units\n\
                         Max address space         unlimited            unlimited            bytes\n";
        let limited = "Max address space         800000000            unlimited            bytes\n";
        let process = "Name:\tsecateur\nVmPeak:\t  900000 kB\nVmSize:\t  100000 kB\n";
        assert_eq!(room(machine, unlimited, process), Some(1_024_000 * 1024));
        assert_eq!(room(machine, limited, process), Some(800_000_000 - 100_000 * 1024 - BESIDE));
        assert_eq!(room(machine, "Max address space 5 5 bytes", process), Some(0));
        assert_eq!(room("", "", ""), None);
    }
}
