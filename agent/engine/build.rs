//! What a build with GPUs needs beside Rust: the kernels, compiled for the emulator, or those that were compiled for GPUs before, to be embedded.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "emulated-cuda")]
    emulator();
    #[cfg(feature = "cuda")]
    embed();
}

/// The kernels as C++.
#[cfg(feature = "emulated-cuda")]
fn emulator() {
    const FOLDER: &str = "src/backend/cuda";
    println!("cargo::rerun-if-changed={FOLDER}/kernels");
    println!("cargo::rerun-if-changed={FOLDER}/emulator");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .include(format!("{FOLDER}/emulator"))
        .include(format!("{FOLDER}/kernels"))
        .file(format!("{FOLDER}/emulator/kernels.cpp"))
        // `#pragma unroll` is for GPUs.
        .flag_if_supported("-Wno-unknown-pragmas")
        // Kernels read what lies in the arena as what it is at that moment.
        .flag("-fno-strict-aliasing")
        .compile("stowage_emulated_cuda");
}

/// Lists what the folder that STOWAGE_CUDA_KERNELS names has: `sm_80/rows.cubin` and so on. Without it nothing is embedded, and kernels are compiled at load.
#[cfg(feature = "cuda")]
fn embed() {
    use std::fmt::Write;
    println!("cargo::rerun-if-env-changed=STOWAGE_CUDA_KERNELS");
    let mut list = String::from("&[\n");
    if let Some(folder) = std::env::var_os("STOWAGE_CUDA_KERNELS") {
        let folder = std::path::absolute(folder).expect("the working directory is known");
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut files: Vec<_> = entries(&folder).iter().flat_map(|architecture| entries(architecture)).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "cubin")) {
            let name = |path: &std::path::Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let architecture = name(file.parent().expect("it is in a folder"));
            writeln!(list, "({architecture:?}, {:?}, include_bytes!({file:?})),", name(file)).expect("a String takes all");
        }
    }
    list.push(']');
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo says where to write"));
    std::fs::write(out.join("cuda_kernels.rs"), list).expect("OUT_DIR can be written");
}

#[cfg(feature = "cuda")]
fn entries(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("STOWAGE_CUDA_KERNELS: {}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path()).collect()
}
