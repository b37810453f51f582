//! Whether the engine computes on a GPU, looked up once for all GPUs of a reading.

use stowage_placement::capability::{LOWEST_COMPUTE_CAPABILITY, are_of_one_gpu};

/// What CUDA lets this process use.
pub struct Cuda {
    /// UUIDs; or why there are none.
    listed: Result<Vec<String>, String>,
    /// A GPU is divided (MIG). CUDA then lists to a process one part, and neither another nor a whole GPU beside it; to a worker, which names its own, those.
    divided: bool,
}

impl Cuda {
    pub fn look(divided: bool) -> Cuda {
        Cuda { listed: listed(), divided }
    }

    /// Whether it computes on the device of this UUID, whose compute capability NVML knows in most cases; the error is why not.
    pub fn computes_on(&self, uuid: &str, capability: Option<(u32, u32)>) -> Result<(), String> {
        let listed = self.listed.as_ref().map_err(String::clone)?;
        let lowest = LOWEST_COMPUTE_CAPABILITY;
        if let Some((major, minor)) = capability.filter(|found| *found < lowest) {
            return Err(format!("the engine needs compute capability {}.{} or later; this has {major}.{minor}", lowest.0, lowest.1));
        }
        match self.divided || listed.iter().any(|one| are_of_one_gpu(one, uuid)) {
            true => Ok(()),
            false => Err("CUDA does not list it among the devices that this process may use".to_owned()),
        }
    }
}

#[cfg(feature = "cuda")]
fn listed() -> Result<Vec<String>, String> {
    Ok(stowage_engine::cuda::probe()?.into_iter().map(|device| device.uuid).collect())
}

#[cfg(not(feature = "cuda"))]
fn listed() -> Result<Vec<String>, String> {
    Err("this build of the agent has no CUDA backend".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: &str = "MIG-00000000-0000-0000-0000-00000000000A";

    fn with(listed: &[&str], divided: bool) -> Cuda {
        Cuda { listed: Ok(listed.iter().map(|uuid| (*uuid).to_owned()).collect()), divided }
    }

    #[test]
    fn what_cuda_lists_is_computed_on_and_nothing_else() {
        assert_eq!(with(&["GPU-00000000-0000-0000-0000-00000000000a"], false).computes_on(PART, None), Ok(()));
        let other = with(&["GPU-00000000-0000-0000-0000-00000000000b"], false);
        assert!(other.computes_on(PART, Some((9, 0))).unwrap_err().contains("does not list it"));
    }

    #[test]
    fn where_a_gpu_is_divided_what_cuda_lists_here_says_nothing_of_what_it_lists_to_workers() {
        assert_eq!(with(&["GPU-00000000-0000-0000-0000-00000000000b"], true).computes_on(PART, Some((9, 0))), Ok(()));
    }

    #[test]
    fn one_that_is_too_old_is_refused_beside_others_with_what_it_has_and_what_is_needed() {
        let error = with(&["GPU-b"], false).computes_on("GPU-a", Some((6, 0))).unwrap_err();
        assert!(error.contains("7.5") && error.contains("6.0"), "{error}");
    }

    #[test]
    fn why_there_is_no_cuda_is_said_of_every_gpu() {
        let cuda = Cuda { listed: Err("libcuda.so.1 was not found".to_owned()), divided: true };
        assert_eq!(cuda.computes_on(PART, Some((6, 0))), Err("libcuda.so.1 was not found".to_owned()));
    }
}
