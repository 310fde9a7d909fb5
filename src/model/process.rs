// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processes, their names, and how it is known which one holds a connection.

use crate::model::CgroupId;
use std::fmt;

/// A process name as the kernel keeps it (`comm` of the thread-group leader, at most 15 bytes), held inline so
/// that events carry it without an allocation. Bytes that are not UTF-8 read as `?`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ProcessName {
    bytes: [u8; 15],
    end: End,
}

/// The zero that ends a name. Its type knows no other byte, so that an `Option<Process>` is no larger than a `Process`:
/// each event has two of them and each record one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
enum End {
    #[default]
    Zero = 0,
}

const EACH_BYTE: u128 = u128::MAX / 0xff;
const NOT_ASCII: u128 = EACH_BYTE << 7;

/// The length of the name in this buffer, and the buffer as a number without what follows the end. All bytes at once,
/// because every event has two names.
#[inline(always)]
fn measure(comm: &[u8; 16]) -> (usize, u128) {
    let all = u128::from_le_bytes(*comm);
    // Of the bytes that are marked as zero the first one is: the subtraction borrows from those after it.
    let zeros = all.wrapping_sub(EACH_BYTE) & !all & NOT_ASCII;
    let len = (zeros.trailing_zeros() as usize / 8).min(15);
    (len, all & ((1 << (8 * len)) - 1))
}

impl ProcessName {
    /// The name in a kernel `comm` buffer, which ends at its first zero byte.
    pub fn from_kernel(comm: [u8; 16]) -> Self {
        let (len, name) = measure(&comm);
        if name & NOT_ASCII == 0 {
            return Self::from_clean(&name.to_le_bytes());
        }
        Self::with_question_marks(&comm[..len])
    }

    /// Of a buffer that [`is_clean`](Self::is_clean). Does not check it.
    #[inline(always)]
    pub(crate) fn from_clean([bytes @ .., _]: &[u8; 16]) -> Self {
        Self { bytes: *bytes, end: End::Zero }
    }

    /// Whether this buffer can be a name unchanged: ASCII, and zeros after its end.
    #[inline(always)]
    pub(crate) fn is_clean(comm: &[u8; 16]) -> bool {
        let (_, name) = measure(comm);
        name & NOT_ASCII == 0 && name == u128::from_le_bytes(*comm)
    }

    fn with_question_marks(name: &[u8]) -> Self {
        let mut bytes = [0; 16];
        let mut rest = name;
        let mut at = 0;
        while !rest.is_empty() {
            let valid = match std::str::from_utf8(rest) {
                Ok(all) => all.len(),
                Err(e) => e.valid_up_to(),
            };
            bytes[at..at + valid].copy_from_slice(&rest[..valid]);
            at += valid;
            rest = &rest[valid..];
            if !rest.is_empty() {
                bytes[at] = b'?';
                at += 1;
                rest = &rest[1..];
            }
        }
        Self::from_clean(&bytes)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        // Only valid UTF-8 ever gets in.
        std::str::from_utf8(&self.bytes[..length(&self.bytes)]).unwrap_or_default()
    }

    /// The name for a terminal or a log. Processes choose their names: characters that a terminal obeys or hides
    /// (controls, changes of direction) become escapes, as do quotes and backslashes ([`str::escape_debug`]).
    ///
    /// ```
    /// let name = tcptop::ProcessName::from("\u{1b}[2J\u{202e}exe");
    /// assert_eq!(name.escaped().to_string(), r"\u{1b}[2J\u{202e}exe");
    /// ```
    pub fn escaped(&self) -> impl fmt::Display + '_ {
        self.as_str().escape_debug()
    }
}

/// How many bytes there are before the first zero.
fn length(bytes: &[u8]) -> usize {
    bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len())
}

impl From<&str> for ProcessName {
    /// Keeps the first 15 bytes, as the kernel does.
    fn from(name: &str) -> Self {
        let mut comm = [0; 16];
        for (to, from) in comm.iter_mut().zip(name.bytes().take(15)) {
            *to = from;
        }
        Self::from_kernel(comm)
    }
}

impl AsRef<str> for ProcessName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for ProcessName {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for ProcessName {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for ProcessName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for ProcessName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(Self::from(name.as_str()))
    }
}

/// A process: always the thread-group leader, never a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Process {
    /// Process id (thread-group id) in the initial pid namespace; 0 for [the kernel itself](Self::is_kernel). Of owners
    /// that were found in /proc (see the limits of [`Feature::Existing`](crate::Feature::Existing)) pid and uid are those
    /// of the namespaces of this process, and the start time is in clock ticks of 10 ms.
    pub pid: u32,
    /// `comm` of the thread-group leader.
    pub name: ProcessName,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// When it started, nanoseconds since boot (CLOCK_BOOTTIME); with `pid` it names a process beyond pid reuse.
    pub start_time_ns: u64,
    /// Its cgroup in the unified hierarchy; none where unknown.
    pub cgroup_id: Option<CgroupId>,
}

impl Process {
    /// A process of which only pid and name are known; the other fields are public and can be set.
    pub fn new(pid: u32, name: impl Into<ProcessName>) -> Self {
        Self { pid, name: name.into(), ..Self::default() }
    }

    /// Not a process but the kernel, which uses sockets for itself (NFS, MPTCP): pid 0, and the name `kernel`. Which of
    /// its threads does that at a moment is chance.
    pub fn is_kernel(&self) -> bool {
        self.pid == 0
    }
}

/// How the owner of a connection is known. An owner is never guessed: TCP changes state in interrupt context
/// too, where the kernel's current process is a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Provenance {
    /// Not known.
    Unknown,
    /// It had the socket among its files when existing connections were searched for.
    Bootstrap,
    /// Taken from the listening socket; the process that accepted has not used the connection yet.
    Inherited,
    /// It closed the socket, and no process was seen to use it. It need not be the one that moved the bytes.
    Closer,
    /// Seen in a call on this very socket.
    Seen,
}

impl Provenance {
    /// Lower-case name: `unknown`, `bootstrap`, `inherited`, `closer` or `seen`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Bootstrap => "bootstrap",
            Self::Inherited => "inherited",
            Self::Closer => "closer",
            Self::Seen => "seen",
        }
    }
}

crate::model::display_as_str!(Provenance);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_may_be_absent_takes_no_more_room() {
        assert_eq!(size_of::<Option<Process>>(), size_of::<Process>());
    }

    #[test]
    fn names_end_at_zero_and_survive_bytes_that_are_not_utf8() {
        assert_eq!(ProcessName::from_kernel(*b"curl\0garbage....").as_str(), "curl");
        assert_eq!(
            ProcessName::from_kernel(*b"a\xffb\xc3\xa9c\xc3\0\0\0\0\0\0\0\0\0").as_str(),
            "a?b\u{e9}c?"
        );
        assert_eq!(ProcessName::from_kernel([b'x'; 16]).as_str().len(), 15);
        assert_eq!(ProcessName::from_kernel([0; 16]).as_str(), "");
        assert_eq!(ProcessName::from_kernel(*b"\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0").as_str(), "\x01");
        assert_eq!(ProcessName::from_kernel(*b"fourteen bytes\0\x01").as_str(), "fourteen bytes");
        assert_eq!(ProcessName::from("a-very-long-process-name"), "a-very-long-pro");
    }
}
