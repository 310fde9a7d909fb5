// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers by which the kernel names network namespaces and cgroups.

use std::fmt;
use std::fs;
use std::io;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A name that is a number is printed as that, with the padding that is asked for.
macro_rules! display_as_number {
    ($($type:ty),+) => {
        $(impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        })+
    };
}

/// A network namespace, named by its inode number: the number that `readlink /proc/PID/ns/net` and `lsns` show.
///
/// ```
/// use tcptop::NetNs;
///
/// let mine = NetNs::current()?;
/// assert_eq!(mine, NetNs::of_process(std::process::id())?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct NetNs(NonZeroU32);

impl NetNs {
    /// The namespace with this inode number; none for 0, which no namespace has.
    pub fn new(inode: u32) -> Option<Self> {
        NonZeroU32::new(inode).map(Self)
    }

    /// The inode number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn current() -> io::Result<Self> {
        Self::at("/proc/thread-self/ns/net")
    }

    /// The namespace of this process. The pid is one of the pid namespace to which the mounted /proc belongs.
    ///
    /// # Errors
    /// If there is no such process, or this one may not look at it: other users' processes take CAP_SYS_PTRACE.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::at(format!("/proc/{pid}/ns/net"))
    }

    fn at(path: impl AsRef<Path>) -> io::Result<Self> {
        let inode = u32::try_from(fs::metadata(path)?.ino()).ok().and_then(Self::new);
        inode.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not the inode of a namespace"))
    }
}

/// A cgroup of the unified hierarchy (cgroup2), named by its id: the inode number of its directory.
///
/// ```no_run
/// use tcptop::{CgroupId, LinuxCollector};
///
/// let service = CgroupId::of_path("/sys/fs/cgroup/system.slice/nginx.service")?;
/// let (collector, events) = LinuxCollector::builder().cgroup(service).spawn()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct CgroupId(NonZeroU64);

impl CgroupId {
    /// The cgroup with this id; none for 0, which no cgroup has.
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(Self)
    }

    /// The id as a number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The cgroup at this directory, such as `/sys/fs/cgroup/system.slice`.
    ///
    /// # Errors
    /// If the path cannot be read, or is no directory of a mounted cgroup2.
    pub fn of_path(path: impl AsRef<Path>) -> io::Result<Self> {
        let directory = fs::File::open(path)?;
        let metadata = directory.metadata()?;
        // Directories of the older hierarchies have inode numbers, too, which are no ids of cgroup2.
        let is_cgroup = metadata.is_dir() && rustix::fs::fstatfs(&directory)?.f_type == CGROUP2_SUPER_MAGIC;
        let id = Self::new(metadata.ino()).filter(|_| is_cgroup);
        id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a directory of cgroup2"))
    }
}

/// `include/uapi/linux/magic.h`
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

display_as_number!(NetNs, CgroupId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_may_be_unknown_takes_no_more_room() {
        assert_eq!(size_of::<Option<NetNs>>(), size_of::<u32>());
        assert_eq!(size_of::<Option<CgroupId>>(), size_of::<u64>());
        assert_eq!((NetNs::new(0), CgroupId::new(0)), (None, None));
        assert_eq!(CgroupId::new(7).map(|id| (id.get(), format!("{id:>3}"))), Some((7, "  7".into())));
    }

    #[test]
    fn a_namespace_has_the_number_that_its_link_shows() {
        let link = fs::read_link("/proc/self/ns/net").unwrap();
        let mine = NetNs::current().unwrap();
        assert_eq!(link.to_str(), Some(format!("net:[{mine}]").as_str()));
        assert_eq!(NetNs::of_process(std::process::id()).unwrap(), mine);
        assert_eq!(NetNs::of_process(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_a_directory_of_cgroup2_has_a_cgroup_id() {
        for path in ["/proc", "/proc/self/cgroup", "/"] {
            assert_eq!(CgroupId::of_path(path).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn in_json_they_are_numbers() {
        let ids = (NetNs::new(7), CgroupId::new(8), NetNs::new(0));
        assert_eq!(serde_json::to_string(&ids).unwrap(), "[7,8,null]");
        assert!(serde_json::from_str::<NetNs>("0").is_err());
    }
}
