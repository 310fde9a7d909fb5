// SPDX-License-Identifier: MIT OR Apache-2.0
//! BPF programs of the benchmarks' own.

use libbpf_cargo::SkeletonBuilder;
use libbpf_rs::{ObjectBuilder, OpenObject};
use std::path::{Path, PathBuf};

/// Compiles and opens `NAME.bpf.c` beside this file.
pub(crate) fn open(name: &str) -> OpenObject {
    ObjectBuilder::default().open_file(compile(name)).expect("it was just built")
}

/// Compiles all of them: what a test of the benchmarks is.
pub(crate) fn compile_all() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/end_to_end");
    for file in here.read_dir().expect("this directory") {
        let file = file.expect("this directory").file_name();
        if let Some(name) = file.to_str().and_then(|name| name.strip_suffix(".bpf.c")) {
            println!("{}", compile(name).display());
        }
    }
}

fn compile(name: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.bpf.o"));
    let include = |path: &str| format!("-I{}", package.join(path).display());
    SkeletonBuilder::new()
        .source(package.join(format!("benches/end_to_end/{name}.bpf.c")))
        .obj(&object)
        .clang_args([include("vmlinux"), include("src/bpf"), "-mcpu=v3".into()])
        .build()
        .expect("clang compiles it");
    object
}
