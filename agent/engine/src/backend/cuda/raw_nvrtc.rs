//! Compiles the kernels with NVIDIA's run-time compiler, whose library is looked for when it is needed. It needs no GPU and no header of the toolkit.

use std::ffi::{CString, NulError, c_char};
use std::ptr;

use cudarc::nvrtc::{result, sys};

use super::driver::Module;
use super::sources::{HEADERS, source};

/// Code of a module for an architecture such as `sm_80`. Errors: what the compiler said, or that there is none.
pub fn compile(module: Module, architecture: &str) -> Result<Vec<u8>, String> {
    // SAFETY: it only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "libnvrtc, CUDA's compiler of kernels, was not found; and this build has none for this GPU that were compiled before".into()
        );
    }
    let (text, mut options) = source(module);
    options.extend([format!("--gpu-architecture={architecture}"), "--std=c++17".into()]);
    let nul = |error: NulError| error.to_string();
    let (text, name) = (CString::new(text).map_err(nul)?, CString::new(format!("{}.cu", module.name())).map_err(nul)?);
    let strings = |of: fn(&(&'static str, &'static str)) -> &'static str| HEADERS.iter().map(|header| CString::new(of(header))).collect();
    let names: Vec<CString> = Result::<Vec<CString>, NulError>::map_err(strings(|header| header.0), nul)?;
    let headers: Vec<CString> = Result::<Vec<CString>, NulError>::map_err(strings(|header| header.1), nul)?;
    let program = Program::new(&text, &name, &headers, &names)?;
    program.compile(&options).map_err(|error| format!("compiling {} for {architecture} failed: {error}", module.name()))
}

/// The compiler's version.
pub fn version() -> Result<(i32, i32), String> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: it only looks for the library, and then both numbers can be written.
    unsafe {
        if !sys::is_culib_present() {
            return Err("libnvrtc was not found".into());
        }
        sys::nvrtcVersion(&raw mut major, &raw mut minor).result().map_err(|error| error.to_string())?;
    }
    Ok((major, minor))
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn new(text: &CString, name: &CString, headers: &[CString], names: &[CString]) -> Result<Program, String> {
        let pointers = |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).collect::<Vec<*const c_char>>();
        let (headers, names) = (pointers(headers), pointers(names));
        let mut program = ptr::null_mut();
        // SAFETY: all strings end with zero and outlive the call, which copies them; there are as many headers as names.
        let made = unsafe {
            sys::nvrtcCreateProgram(&raw mut program, text.as_ptr(), name.as_ptr(), headers.len() as i32, headers.as_ptr(), names.as_ptr())
        };
        made.result().map_err(|error| error.to_string())?;
        Ok(Program(program))
    }

    fn compile(&self, options: &[String]) -> Result<Vec<u8>, String> {
        // SAFETY: the program was made by `new`, and is there until it is dropped.
        unsafe {
            if let Err(error) = result::compile_program(self.0, options) {
                let log = result::get_program_log(self.0).unwrap_or_default();
                let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
                return Err(format!("{error}: {}", String::from_utf8_lossy(&log)));
            }
            let mut size = 0;
            sys::nvrtcGetCUBINSize(self.0, &raw mut size).result().map_err(|error| error.to_string())?;
            let mut code = vec![0u8; size];
            sys::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast()).result().map_err(|error| error.to_string())?;
            Ok(code)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: as above. That it fails is nothing that could be done something about.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
