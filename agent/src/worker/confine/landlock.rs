//! Landlock: the kernel refuses (EACCES) to open what the policy does not name, to bind or connect a TCP socket, and to signal, or reach by an abstract
//! Unix socket, a process that is not confined along.

use ::landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};

use super::policy::{Access, Policy};

/// The latest that this was tried with. What later ones can refuse is left alone.
const TRIED: ABI = ABI::V7;

/// What came with which version: what a kernel without it does not refuse, and the version of Linux that does.
const BEGAN_WITH: [(ABI, &str, &str); 5] = [
    (ABI::V1, "opening files of others", "5.13"),
    (ABI::V3, "truncating files of others", "6.2"),
    (ABI::V4, "turning its port into a connection to elsewhere", "6.7"),
    (ABI::V5, "commanding devices of others", "6.10"),
    (ABI::V6, "reaching processes by abstract Unix sockets", "6.12"),
];

/// The paths that were granted, held open: a rule is of an inode, and `/proc` makes those anew once nobody holds them.
#[derive(Debug, Default)]
pub struct Held {
    _paths: Vec<PathFd>,
}

/// Restricts the thread that calls, as far as the kernel can; what it can't is said in `lacking`.
pub fn restrict(policy: &Policy, lacking: &mut Vec<String>) -> Held {
    // What is not there needs no rule. What appears there later stays refused.
    let open = policy.grants.iter().filter_map(|(path, access)| Some((PathFd::new(path).ok()?, rights(*access, path.is_dir()))));
    let open: Vec<_> = open.collect();
    match enforce(&open) {
        Ok(status) => lacking.extend(not_refused(status.landlock)),
        Err(error) => lacking.push(format!("files can't be refused (Landlock): {error}")),
    }
    Held { _paths: open.into_iter().map(|(path, _)| path).collect() }
}

fn enforce(open: &[(PathFd, BitFlags<AccessFs>)]) -> Result<RestrictionStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(TRIED))?
        .handle_access(AccessNet::from_all(TRIED))?
        .scope(Scope::from_all(TRIED))?
        .create()?;
    let rules = open.iter().map(|(path, rights)| Ok::<_, RulesetError>(PathBeneath::new(path, *rights)));
    ruleset.add_rules(rules)?.restrict_self()
}

fn rights(access: Access, folder: bool) -> BitFlags<AccessFs> {
    let of_files = match access {
        Access::Read => AccessFs::ReadFile.into(),
        Access::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        Access::Keep => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
    };
    match (folder, access) {
        (false, _) => of_files,
        (true, Access::Read | Access::Device) => of_files | AccessFs::ReadDir,
        (true, Access::Keep) => of_files | AccessFs::ReadDir | AccessFs::MakeReg | AccessFs::RemoveFile,
    }
}

/// What this kernel does not refuse.
fn not_refused(status: LandlockStatus) -> Option<String> {
    let (abi, version) = match status {
        LandlockStatus::Available { effective_abi, .. } => (effective_abi, format!("Landlock in version {effective_abi}")),
        LandlockStatus::NotEnabled => {
            (ABI::Unsupported, "no Landlock (it is built in, and off: `lsm=` of the kernel's command line)".to_owned())
        }
        LandlockStatus::NotImplemented => (ABI::Unsupported, "no Landlock".to_owned()),
    };
    let missing = BEGAN_WITH.iter().filter(|(since, ..)| *since > abi);
    let missing: Vec<_> = missing.map(|(_, what, linux)| format!("{what} (Linux {linux})")).collect();
    (!missing.is_empty()).then(|| format!("the kernel has {version}, which does not refuse: {}", missing.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_kernel_does_not_refuse_is_said_with_the_version_that_does() {
        let available = |abi| not_refused(LandlockStatus::Available { effective_abi: abi, kernel_abi: None });
        assert_eq!(available(ABI::V7), None);
        let told = available(ABI::V4).unwrap();
        assert_eq!(
            told,
            "the kernel has Landlock in version 4, which does not refuse: commanding devices of others (Linux 6.10), reaching processes by abstract Unix sockets (Linux 6.12)"
        );
        assert!(not_refused(LandlockStatus::NotImplemented).unwrap().contains("opening files of others (Linux 5.13)"));
    }
}
