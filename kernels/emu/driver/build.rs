//! Gives the shared library the name by which `cudarc` first asks for the driver. A process that loaded it by its
//! path then finds it under that name, whether or not the machine has a driver of its own.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
