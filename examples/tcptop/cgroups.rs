// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of cgroups: the path of the directory whose inode number is the id.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tcptop::CgroupId;

/// For an id that is not known, directories are read again; but not all the time, for it may be gone.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Names {
    known: HashMap<u64, String>,
    read: Option<Instant>,
}

static NAMES: Mutex<Option<Names>> = Mutex::new(None);

/// Its whole path below the root of the hierarchy; the number where it has none.
pub(crate) fn path(id: CgroupId) -> String {
    find(id).map_or_else(|| id.to_string(), |path| format!("/{}", path.escape_debug()))
}

/// Its path below the root of the hierarchy, with what containers and pods are called in short; the number where it has none.
/// Escaped, because others choose these names.
pub(crate) fn name(id: CgroupId) -> String {
    find(id).map_or_else(|| id.to_string(), |path| short(&path))
}

/// Its path below the root of the hierarchy, as it is; none where it has none.
pub(crate) fn find(id: CgroupId) -> Option<String> {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    if !names.known.contains_key(&id.get()) && names.read.is_none_or(|read| read.elapsed() >= AGAIN) {
        names.read = Some(Instant::now());
        names.known = mount().map(|root| paths(&root)).unwrap_or_default();
    }
    names.known.get(&id.get()).cloned()
}

/// Gives one a path, for as long as no other is looked for.
#[cfg(test)]
pub(crate) fn know(id: u64, path: &str) {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    names.known.insert(id, path.to_owned());
    names.read = Some(Instant::now() + AGAIN * 1000);
}

/// Where the hierarchy is mounted.
pub(crate) fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place.replace("\\040", " ")))
    })
}

fn paths(root: &Path) -> HashMap<u64, String> {
    let (mut all, mut left) = (HashMap::new(), vec![root.to_owned()]);
    if let Ok(metadata) = fs::metadata(root) {
        all.insert(metadata.ino(), String::new());
    }
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                let below = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                all.insert(entry.ino(), below);
                left.push(path);
            }
        }
    }
    all
}

/// What people know it by: the unit, or the container with twelve letters of its id, as Docker, containerd, CRI-O and Podman
/// name them.
fn short(path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or(path);
    let last = last.strip_suffix(".scope").unwrap_or(last);
    let (runtime, id) = ["docker-", "cri-containerd-", "crio-", "libpod-"]
        .into_iter()
        .find_map(|prefix| last.strip_prefix(prefix).map(|id| (prefix.trim_end_matches('-'), id)))
        .unwrap_or_else(|| (path.split('/').next().unwrap_or_default(), last));
    let is_container = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    let name = if is_container { format!("{runtime}/{}", &id[..12]) } else { format!("/{path}") };
    name.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_units_have_the_names_that_people_know() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for (path, expected) in [
            ("system.slice/nginx.service", "/system.slice/nginx.service".to_owned()),
            (&format!("system.slice/docker-{id}.scope"), "docker/0123456789ab".to_owned()),
            (&format!("docker/{id}"), "docker/0123456789ab".to_owned()),
            (
                &format!("kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
                "cri-containerd/0123456789ab".to_owned(),
            ),
            (&format!("machine.slice/libpod-{id}.scope"), "libpod/0123456789ab".to_owned()),
            ("a\u{1b}b", "/a\\u{1b}b".to_owned()),
        ] {
            assert_eq!(short(path), expected);
        }
    }
}
