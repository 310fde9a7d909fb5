// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounted file systems: cgroup2, and named network namespaces.

use crate::model::CgroupId;
use procfs::process::MountInfo;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// A mount of the cgroup2 hierarchy, or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup2 {
    pub(crate) path: PathBuf,
    /// The mounted cgroup, as seen from the root of our cgroup namespace: `/` is that root, and `/../..` is an
    /// ancestor.
    pub(crate) root: String,
}

/// The mount in which this process finds the cgroups that /proc names. It has the root of this process's cgroup
/// namespace, or else an ancestor of that root.
pub(crate) fn own_cgroup2() -> Option<Cgroup2> {
    let all = mountinfo().ok()?;
    let mut roots = roots_of_cgroup2(&all).map(|mount| Cgroup2 { path: mount.mount_point, root: mount.root });
    let first = roots.next()?;
    if first.root == "/" { Some(first) } else { roots.find(|mount| mount.root == "/").or(Some(first)) }
}

/// The mount with the most cgroups, and whether it has all cgroups of the machine.
///
/// It is the hierarchy's own root, if that is mounted anywhere. Otherwise it is the root of our cgroup namespace, or an
/// ancestor of that root.
pub(crate) fn cgroup2_top() -> Option<(PathBuf, bool)> {
    find_top(&mountinfo().ok()?, inode_within)
}

/// The same, with the inode number of each mount. Only the root of a kernfs has the inode number 1.
fn find_top(mountinfo: &[u8], inode: impl Fn(&MountInfo) -> Option<u64>) -> Option<(PathBuf, bool)> {
    let roots: Vec<_> = roots_of_cgroup2(mountinfo).collect();
    let top = roots.iter().find(|mount| inode(mount) == Some(1));
    let own = || roots.iter().find(|mount| mount.root == "/").or(roots.first());
    top.map(|mount| (mount.mount_point.clone(), true)).or_else(|| Some((own()?.mount_point.clone(), false)))
}

/// The inode number of the mount's root. None if another file system is mounted over it.
fn inode_within(mount: &MountInfo) -> Option<u64> {
    let found = fs::metadata(&mount.mount_point).ok()?;
    let device = format!("{}:{}", rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    (device == mount.majmin).then(|| found.ino())
}

/// The mounts whose root is the root of our cgroup namespace or an ancestor of it. Mounts of another part of the
/// hierarchy have that part's path as their root.
fn roots_of_cgroup2(mountinfo: &[u8]) -> impl Iterator<Item = MountInfo> {
    let is_root = |root: &str| {
        Path::new(root).components().all(|c| matches!(c, Component::RootDir | Component::ParentDir))
    };
    mounts(mountinfo, "cgroup2").filter(move |mount| is_root(&mount.root))
}

/// The ids of these cgroups and of all cgroups below them, as far as this process sees their directories.
pub(crate) fn cgroups_below(trees: &[CgroupId]) -> HashSet<CgroupId> {
    let mut below = HashSet::new();
    let top = if trees.is_empty() { None } else { cgroup2_top() };
    let mut pending: Vec<_> = top.into_iter().map(|(path, _)| (path, false)).collect();
    while let Some((path, parent_is_in)) = pending.pop() {
        // The cgroup may just have been removed.
        let Ok(directory) = fs::metadata(&path) else { continue };
        let id = CgroupId::new(directory.ino());
        let is_in = parent_is_in || id.is_some_and(|id| trees.contains(&id));
        below.extend(id.filter(|_| is_in));
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        pending.extend(directories.map(|entry| (entry.path(), is_in)));
    }
    below
}

/// The files that keep network namespaces alive under a name, such as those of `ip netns`.
pub(crate) fn named_network_namespaces() -> Vec<PathBuf> {
    let all = mountinfo().unwrap_or_default();
    let of_network = mounts(&all, "nsfs").filter(|mount| mount.root.starts_with("net:"));
    of_network.map(|mount| mount.mount_point).collect()
}

pub(crate) fn mountinfo() -> io::Result<Vec<u8>> {
    fs::read("/proc/self/mountinfo")
}

/// The mounts of this type of file system. Each line is read by itself, so that a line that cannot be read does no
/// harm.
pub(crate) fn mounts(mountinfo: &[u8], fs_type: &str) -> impl Iterator<Item = MountInfo> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| MountInfo::from_line(&String::from_utf8_lossy(line)).ok())
        .filter(move |mount| mount.fs_type == fs_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_root_is_found_in_unified_and_hybrid_set_ups_and_past_strange_lines() {
        let find_cgroup2 = |mounts: &[u8]| find_top(mounts, |_| None).map(|(path, _)| path);
        let unified: &[u8] =
            b"24 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_cgroup2(unified).unwrap(), Path::new("/sys/fs/cgroup"));

        let hybrid = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));

        let strange: &[u8] = b"not a mount\n\n\
            50 30 8:1 / /media/caf\xe9 rw - vfat /dev/sda1 rw\n\
            51 30 0:22 /docker/0123 /mnt/part rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(strange), None);
        assert_eq!(find_cgroup2(&[strange, unified].concat()).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(find_cgroup2(b""), None);
    }

    /// As in a container: its own cgroup namespace at the usual place, a part of the host's hierarchy, and all of it.
    #[test]
    fn the_machines_own_root_is_preferred_wherever_it_is_mounted() {
        let all = b"24 30 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n\
            25 30 0:22 /../sibling /part rw - cgroup2 cgroup rw\n\
            26 30 0:22 /../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let inode = |mount: &MountInfo| Some(if mount.root == "/../.." { 1 } else { 7000 });
        assert_eq!(find_top(all, inode), Some(("/host/sys/fs/cgroup".into(), true)));
        assert_eq!(find_top(all, |_| Some(7000)), Some(("/sys/fs/cgroup".into(), false)), "its own");
        assert_eq!(find_top(&all[48..], |_| Some(7000)), Some(("/host/sys/fs/cgroup".into(), false)));
        let (path, _) = cgroup2_top().unwrap_or_default();
        assert!(path.as_os_str().is_empty() || path.is_dir());
    }
}
