//! Kernels that were compiled when the program was built.

use super::driver::Module;

/// Architecture (`sm_80`), module, and the code.
const KERNELS: &[(&str, &str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/cuda_kernels.rs"));

/// Code of a module for a device of this compute capability: of the newest architecture with the same major number that is not newer than the device.
pub fn find(module: Module, (major, minor): (u32, u32)) -> Option<&'static [u8]> {
    let name = module.name();
    let found = (0..=minor).rev().find_map(|minor| {
        let architecture = format!("sm_{major}{minor}");
        KERNELS.iter().find(|(embedded, module, _)| *embedded == architecture && *module == name)
    });
    found.map(|(_, _, code)| *code)
}
