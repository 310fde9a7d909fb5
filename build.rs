// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles the BPF programs of `src/bpf` and generates their skeletons into `OUT_DIR`. With the feature `static` it also
//! says where libelf and zlib are.

use libbpf_cargo::SkeletonBuilder;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};
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
    // With `vendored` libbpf-sys has built static libraries itself.
    let has = |feature: &str| env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    if has("STATIC") && !has("VENDORED") {
        link_statically(&out.join("static"));
    }
}

/// libbpf-sys asks for `-lelf -lz`. The linker searches this directory before those of the system, and finds libraries with
/// these names that are static: scripts, each with the path of the real one.
///
/// The feature `static` of libbpf-sys does it otherwise: rustc itself looks for the libraries, and does not know the
/// directories where Debian has them.
fn link_statically(directory: &Path) {
    // Newer libraries of ELF files need zstd, older ones do not.
    for (name, optional) in [("libelf.a", Some("libzstd.a")), ("libz.a", None)] {
        let Some(library) = static_library(name) else {
            fail(
                &format!("cannot find {name}, which the feature `static` links"),
                "install libelf-dev and zlib1g-dev, or what your distribution calls the static libraries; or use the \
                 feature `vendored`",
            );
        };
        let files = [Some(library), optional.and_then(static_library)].into_iter().flatten();
        let script: String = files.map(|file| format!("INPUT(\"{}\")\n", file.display())).collect();
        let written = fs::create_dir_all(directory).and_then(|()| fs::write(directory.join(name), script));
        if let Err(e) = written {
            fail(&format!("cannot write {}: {e}", directory.join(name).display()), "is the disk full?");
        }
    }
    println!("cargo:rustc-link-search=native={}", directory.display());
}

/// Where the C compiler finds it; none if it does not.
fn static_library(name: &str) -> Option<PathBuf> {
    let mut compiler = cc::Build::new().try_get_compiler().ok()?.to_command();
    let answer = compiler.arg(format!("-print-file-name={name}")).output().ok()?;
    // A name that it does not find it gives back as it is.
    Some(PathBuf::from(String::from_utf8(answer.stdout).ok()?.trim())).filter(|path| path.is_absolute())
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
