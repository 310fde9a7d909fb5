// SPDX-License-Identifier: MIT OR Apache-2.0
//! BPF programs of the benchmarks' own.

use libbpf_cargo::SkeletonBuilder;
use libbpf_rs::{ObjectBuilder, OpenObject};
use std::path::Path;

/// Compiles and opens `NAME.bpf.c` beside this file.
pub(crate) fn open(name: &str) -> OpenObject {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.bpf.o"));
    let include = |path: &str| format!("-I{}", package.join(path).display());
    SkeletonBuilder::new()
        .source(package.join(format!("benches/end_to_end/{name}.bpf.c")))
        .obj(&object)
        .clang_args([include("vmlinux"), include("src/bpf"), "-mcpu=v3".into()])
        .build()
        .expect("clang compiles it");
    ObjectBuilder::default().open_file(object).expect("it was just built")
}
