// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles the BPF programs of `src/bpf` and generates their skeletons into `OUT_DIR`.

use libbpf_cargo::SkeletonBuilder;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use tracing_subscriber::util::SubscriberInitExt;

/// What is compiled; everything else in `src/bpf` is a header. From `wire` come types alone.
const OBJECTS: [&str; 4] = ["wire", "tcptop", "probe", "holders"];

fn main() {
    for input in ["build.rs", "src/bpf", "vmlinux"] {
        println!("cargo:rerun-if-changed={input}");
    }
    for variable in ["CLANG", "TCPTOP_BPF_WERROR"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let clang = env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    if Command::new(&clang).arg("--version").output().is_err() {
        fail(
            &format!("cannot run {}, which compiles the BPF programs", clang.to_string_lossy()),
            "install the package clang, or name another clang in the environment variable CLANG",
        );
    }
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        fail("OUT_DIR is not set", "build with cargo");
    };
    for name in OBJECTS {
        compile(name, &clang, &out);
    }
}

fn compile(name: &str, clang: &OsString, out: &Path) {
    let mut args = vec!["-I", "vmlinux", "-mcpu=v3", "-Wall", "-Wextra", "-Wno-unused-parameter"];
    if env::var_os("TCPTOP_BPF_WERROR").is_some_and(|v| v == "1") {
        args.push("-Werror");
    }
    let mut skeleton = SkeletonBuilder::new();
    skeleton
        .source(format!("src/bpf/{name}.bpf.c"))
        .obj(out.join(format!("{name}.bpf.o")))
        .reference_obj(true)
        .clang(clang)
        .clang_args(args)
        // There is none, so the skeleton stays as it is: a toolchain may be without rustfmt (rustup's minimal profile).
        .rustfmt(out.join("no-rustfmt"));
    let built = with_warnings(|| skeleton.build())
        .and_then(|()| skeleton.generate(out.join(format!("{name}.skel.rs"))));
    if let Err(e) = built {
        fail(&format!("cannot compile src/bpf/{name}.bpf.c: {e:#}"), "is this clang 11 or later?");
    }
}

/// Shows clang's warnings, which would go nowhere without a subscriber; the generator's own are of no use to anybody.
fn with_warnings<T>(compile: impl FnOnce() -> T) -> T {
    let _shown = tracing_subscriber::fmt()
        .event_format(libbpf_cargo::util::CargoWarningFormatter)
        .finish()
        .set_default();
    compile()
}

fn fail(what: &str, remedy: &str) -> ! {
    eprintln!("tcptop: {what}\n{remedy}");
    exit(1);
}
