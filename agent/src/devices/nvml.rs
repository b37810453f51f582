//! GPUs through NVML. A node without NVML is a CPU node, not an error: what NVML said goes into status.

mod cuda;
mod driver;
mod gpu;
mod visible;

use std::path::PathBuf;

use nvml_wrapper::error::NvmlError;
use stowage_crds::model_node::DeviceBackend;

use self::driver::Driver;
pub use self::visible::VARIABLE as CUDA_VISIBLE_DEVICES;
use self::visible::Visible;
use super::Gpu;

/// NVML, loaded when it is first there: a driver may be installed while the agent runs.
pub struct Nvml {
    /// `None`: GPUs are not looked for.
    source: Option<Source>,
    visible: Visible,
    loaded: Option<Driver>,
}

struct Source {
    library: Option<PathBuf>,
}

impl Nvml {
    /// NVML from `library`, or from the system where that is `None`. Of the GPUs those count that CUDA may see.
    pub fn new(library: Option<PathBuf>) -> Nvml {
        Nvml { source: Some(Source { library }), visible: Visible::from_environment(), loaded: None }
    }

    pub fn disabled() -> Nvml {
        Nvml { source: None, visible: Visible::from_environment(), loaded: None }
    }

    /// The GPUs, and what is to be said of them all.
    pub fn read(&mut self) -> (Vec<Gpu>, String) {
        let Some(source) = &self.source else {
            return (Vec::new(), "GPUs are not used: the agent was started with --cpu-only".to_owned());
        };
        if self.loaded.is_none() {
            match source.load() {
                Ok(nvml) => self.loaded = Some(Driver::new(nvml)),
                Err(error) => return (Vec::new(), source.explain(&error)),
            }
        }
        let Some(driver) = &mut self.loaded else { return (Vec::new(), String::new()) };
        match driver.read() {
            Ok((gpus, unread)) => self.visible_of(gpus, &unread),
            Err(error) => {
                let message = format!("NVML could not list the GPUs: {error}");
                // A driver that was replaced below us answers nothing until it is loaded anew.
                self.loaded = None;
                (Vec::new(), message)
            }
        }
    }

    /// Those that may be used, and what a person should know of them.
    fn visible_of(&self, mut gpus: Vec<Gpu>, unread: &[String]) -> (Vec<Gpu>, String) {
        let count = gpus.len();
        let uuids: Vec<&str> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
        let visible: Vec<String> = self.visible.of(&uuids).into_iter().map(str::to_owned).collect();
        gpus.retain(|gpu| visible.contains(&gpu.uuid));
        let message = if gpus.is_empty() && count > 0 { self.visible.explain(count) } else { summarise(&gpus) };
        let told = unread.iter().cloned().chain([message].into_iter().filter(|message| !message.is_empty()));
        let told: Vec<String> = told.collect();
        (gpus, told.join("; "))
    }
}

impl Source {
    fn load(&self) -> Result<nvml_wrapper::Nvml, NvmlError> {
        match &self.library {
            Some(path) => nvml_wrapper::Nvml::builder().lib_path(path.as_os_str()).init(),
            None => nvml_wrapper::Nvml::init().or_else(|error| match error {
                // Distributions without the development package have the versioned name alone.
                NvmlError::LibloadingError(_) => nvml_wrapper::Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init(),
                other => Err(other),
            }),
        }
    }

    fn explain(&self, error: &NvmlError) -> String {
        match &self.library {
            Some(path) => format!("NVML could not be loaded from {}: {error}", path.display()),
            None => format!("no GPU: NVML could not be loaded: {error}"),
        }
    }
}

/// What a person should know of the GPUs as a whole.
fn summarise(gpus: &[Gpu]) -> String {
    if gpus.is_empty() {
        return "no GPU: NVML is there, and lists none".to_owned();
    }
    if gpus.iter().any(|gpu| gpu.backend == DeviceBackend::Simulated) {
        return "simulated GPUs: what is placed there is computed on the CPU".to_owned();
    }
    match gpus.iter().all(|gpu| gpu.backend == DeviceBackend::None) {
        true => gpus[0].message.clone(),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_nvml_is_a_cpu_node_and_says_what_nvml_said() {
        let (gpus, message) = Nvml::new(Some("/nonexistent/libnvidia-ml.so".into())).read();
        assert!(gpus.is_empty());
        assert!(message.starts_with("NVML could not be loaded from /nonexistent/libnvidia-ml.so: "), "{message}");
        assert!(message.contains("No such file"), "{message}");
    }
}
