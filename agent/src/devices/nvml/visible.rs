//! Which GPUs may be used, as CUDA's own variable says it: what is kept from CUDA must not be offered to anybody.

/// Names the variable, by which CUDA leaves out GPUs.
pub const VARIABLE: &str = "CUDA_VISIBLE_DEVICES";

/// The GPUs that may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    /// What the variable says; `None`: all of them.
    named: Option<String>,
}

impl Visible {
    pub fn from_environment() -> Visible {
        Visible { named: std::env::var(VARIABLE).ok() }
    }

    /// Which of these UUIDs, listed in NVML's order, may be used.
    ///
    /// As CUDA reads the variable: names are separated by commas, each a number or how a UUID begins, and the first that names nothing ends the list.
    /// Numbers count as NVML does, by the place on the PCI bus; CUDA does so where `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`.
    pub fn of<'a>(&self, uuids: &[&'a str]) -> Vec<&'a str> {
        let Some(named) = &self.named else { return uuids.to_vec() };
        let find = |name: &str| match name.parse::<usize>() {
            Ok(number) => uuids.get(number).copied(),
            Err(_) => uuids.iter().copied().find(|uuid| !name.is_empty() && uuid.starts_with(name)),
        };
        named.split(',').map_while(|name| find(name.trim())).collect()
    }

    /// Why none of so many GPUs may be used.
    pub fn explain(&self, count: usize) -> String {
        let named = self.named.as_deref().unwrap_or_default();
        format!("no GPU: NVML lists {count}, and {VARIABLE} of the agent is `{named}`, which names none of them")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUIDS: [&str; 3] = ["GPU-aa", "GPU-ab", "MIG-c"];

    fn of(named: &str) -> Vec<&'static str> {
        Visible { named: Some(named.to_owned()) }.of(&UUIDS)
    }

    #[test]
    fn without_the_variable_all_may_be_used() {
        assert_eq!(Visible { named: None }.of(&UUIDS), UUIDS);
    }

    #[test]
    fn gpus_are_named_by_number_or_by_how_their_uuid_begins_until_a_name_is_wrong() {
        assert_eq!(of("MIG-c, 0"), ["MIG-c", "GPU-aa"]);
        assert_eq!(of("GPU-ab"), ["GPU-ab"]);
        assert_eq!(of("1,7,0"), ["GPU-ab"]);
        assert_eq!(of("-1"), [""; 0]);
    }

    #[test]
    fn an_empty_variable_hides_all() {
        assert_eq!(of(""), [""; 0]);
        assert_eq!(
            Visible { named: Some(String::new()) }.explain(2),
            "no GPU: NVML lists 2, and CUDA_VISIBLE_DEVICES of the agent is ``, which names none of them"
        );
    }
}
