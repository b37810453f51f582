//! `agent prepare`: gives folders of the node to the user that the agent runs as. The kubelet makes the folder of a hostPath volume as root's, and whoever
//! parses files of strangers should not be root: so a container with this one right (`CAP_CHOWN`) runs before the agent's.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

/// Give folders to a user, so that an agent that is not root can write there.
#[derive(Args, Clone, Debug)]
pub struct PrepareArgs {
    /// Whom they are to belong to.
    #[arg(long, value_name = "UID")]
    pub user: u32,
    #[arg(long, value_name = "GID")]
    pub group: u32,
    /// Made where they are missing. What is in them stays as it is.
    #[arg(required = true, value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,
}

pub fn run(args: &PrepareArgs) -> Result<()> {
    args.folders.iter().try_for_each(|folder| give(folder, args.user, args.group))
}

fn give(folder: &Path, user: u32, group: u32) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let found = folder.metadata().with_context(|| format!("looking at {}", folder.display()))?;
    if (found.uid(), found.gid()) == (user, group) {
        return Ok(());
    }
    let context = || format!("giving {} to {user}:{group}; it is {}:{}'s", folder.display(), found.uid(), found.gid());
    chown(folder, Some(user), Some(group)).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_and_given_and_one_that_is_right_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().metadata().unwrap();
        let folders = vec![directory.path().join("a/b"), directory.path().join("a")];
        let args = PrepareArgs { user: own.uid(), group: own.gid(), folders };
        run(&args).unwrap();
        run(&args).unwrap();
        assert_eq!(args.folders[0].metadata().unwrap().uid(), own.uid());
    }

    #[test]
    fn what_can_not_be_given_is_said_with_whose_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = run(&PrepareArgs { user: 1, group: 1, folders: vec![file.join("below")] }).unwrap_err();
        assert!(error.to_string().starts_with("making "), "{error}");
    }
}
