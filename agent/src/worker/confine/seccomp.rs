//! seccomp: the kernel refuses (EPERM) system calls that a worker has no use for.
//!
//! With its port bound before, a worker makes no socket but Unix ones, to reach its agent; so there is no way to the network, whatever the kernel's
//! Landlock knows of it. io_uring would go past all of this, and is refused as a whole.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, sock_filter,
};

macro_rules! system_calls {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
}

/// Refused whatever their arguments.
pub(super) const REFUSED: &[(&str, c_long)] = system_calls![
    // Programs.
    SYS_execve SYS_execveat
    // Other processes: their memory, their files, their end.
    SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_process_madvise SYS_process_mrelease SYS_kcmp SYS_migrate_pages SYS_move_pages
    SYS_pidfd_open SYS_pidfd_getfd SYS_pidfd_send_signal SYS_tkill SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo
    // Namespaces and mounts, and files past the paths that lead to them.
    SYS_unshare SYS_setns SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_open_tree SYS_move_mount
    SYS_mount_setattr SYS_name_to_handle_at SYS_open_by_handle_at SYS_fanotify_init SYS_quotactl SYS_swapon SYS_swapoff SYS_acct
    // Parts of the kernel that have been ways into it.
    SYS_bpf SYS_perf_event_open SYS_userfaultfd SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_keyctl SYS_add_key SYS_request_key
    // The machine itself.
    SYS_kexec_load SYS_kexec_file_load SYS_init_module SYS_finit_module SYS_delete_module SYS_reboot SYS_syslog SYS_sethostname SYS_setdomainname
    SYS_settimeofday SYS_clock_settime SYS_clock_adjtime SYS_adjtimex
];

#[cfg(target_arch = "x86_64")]
pub(super) const REFUSED_ON_X86: &[(&str, c_long)] = system_calls![SYS_fork SYS_vfork SYS_iopl SYS_ioperm SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
pub(super) const REFUSED_ON_X86: &[(&str, c_long)] = &[];

/// The latest system call that was looked at. To the process there are no later ones (ENOSYS), as on a kernel that doesn't have them; and none of those that
/// x86-64 has a second time under higher numbers.
const LATEST: c_long = libc::SYS_mseal;

/// What a thread is made with; a process is made without it.
const THREAD: u64 = libc::CLONE_THREAD as u64;
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Restricts the thread that calls. It gets no privileges by running a program either (`no_new_privs`).
pub fn restrict() -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter(&unknown())?;
    seccompiler::apply_filter(&refusals()?)
}

fn refusals() -> Result<BpfProgram, BackendError> {
    let whatever = REFUSED.iter().chain(REFUSED_ON_X86).map(|(_, call)| (*call, Vec::new()));
    let rules: BTreeMap<_, _> = whatever.chain(by_arguments()?).collect();
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refused, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// Refused where any of its rules holds.
fn by_arguments() -> Result<Vec<(c_long, Vec<SeccompRule>)>, BackendError> {
    let own = u64::from(std::process::id());
    let mut made_with = vec![rule(&[(0, SeccompCmpOp::MaskedEq(THREAD), 0)])?];
    for namespace in NAMESPACES {
        made_with.push(has(0, namespace as u64)?);
    }
    let not_unix = (0, SeccompCmpOp::Ne, libc::AF_UNIX as u64);
    Ok(vec![
        (libc::SYS_clone, made_with),
        (libc::SYS_socket, vec![rule(&[not_unix])?]),
        // TCP fast open connects without a connect.
        (libc::SYS_sendto, vec![has(3, libc::MSG_FASTOPEN as u64)?]),
        (libc::SYS_sendmsg, vec![has(2, libc::MSG_FASTOPEN as u64)?]),
        (libc::SYS_sendmmsg, vec![has(3, libc::MSG_FASTOPEN as u64)?]),
        // Signals to itself, as by an abort.
        (libc::SYS_kill, vec![rule(&[(0, SeccompCmpOp::Ne, own)])?]),
        (libc::SYS_tgkill, vec![rule(&[(0, SeccompCmpOp::Ne, own)])?]),
        (libc::SYS_prlimit64, vec![rule(&[(0, SeccompCmpOp::Ne, own), (0, SeccompCmpOp::Ne, 0)])?]),
    ])
}

/// Holds where all conditions on arguments do, of which the lower half counts: these are ints.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
    let condition =
        |(argument, is, value): &(u8, SeccompCmpOp, u64)| SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, is.clone(), *value);
    SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
}

fn has(argument: u8, flag: u64) -> Result<SeccompRule, BackendError> {
    rule(&[(argument, SeccompCmpOp::MaskedEq(flag), flag)])
}

/// What there is not (ENOSYS): later system calls, and `clone3`, whose flags can't be looked at; the C library then takes `clone`.
fn unknown() -> BpfProgram {
    let not_there = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let statement = |code: u32, k: u32| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump =
        |code: u32, k: c_long, jt: u8, jf: u8| sock_filter { code: (libc::BPF_JMP | libc::BPF_K | code) as u16, jt, jf, k: k as u32 };
    vec![
        // The system call's number is the first of what a filter is given.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(libc::BPF_JEQ, libc::SYS_clone3, 1, 0),
        jump(libc::BPF_JGT, LATEST, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, not_there),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ]
}
