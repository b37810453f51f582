//! What the allocator keeps for itself, and who goes where memory runs out. A worker allocates what is large once, and its memory is promised to the byte.

/// Each of glibc's arenas keeps what requests have let go of: with as many as it makes for itself, a worker of 215 MiB kept 60 MiB more under mixed
/// requests; with two, 8. To be called before there is a second thread.
pub fn keep_few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a limit, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Where memory runs out, of the agent's processes this one is to go. Where that can't be said, nothing is lost but that.
pub fn go_first() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Gives back to the kernel what loading has let go of: a file's lists of tokens take more than the tokenizer that is made of them.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
