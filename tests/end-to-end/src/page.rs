//! A page's commands, as a reader types them: blocks of type `console` have commands after `$ `, each followed by what it prints; blocks of type `sh` have
//! commands alone. They are run one after another in one shell.
//!
//! Comments that readers don't see say how a block is treated: `<!-- not run: WHY -->` before it, or `<!-- goes on: TEXT -->` where its command stays, and has
//! come up once it prints TEXT.

mod shown;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::CommandExt;

use crate::watch;
pub use shown::shows;

/// One command, with what the page shows of its output; `None`: the page shows none, and it must succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The command's last, counted from 1, so that what is shown begins after it.
    pub line: usize,
    pub command: String,
    pub shown: Option<String>,
    pub treatment: Treatment,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Treatment {
    Run,
    /// For this reason.
    NotRun(String),
    /// It stays, and is up once it prints this.
    GoesOn(String),
}

/// The commands of a page, in its order.
pub fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut treatment = Treatment::Run;
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let kind = line.strip_prefix("```");
        if let Some(kind) = kind {
            let block: Vec<(usize, &str)> =
                lines.by_ref().take_while(|(_, line)| *line != "```").map(|(at, line)| (at + 1, line)).collect();
            let treatment = std::mem::replace(&mut treatment, Treatment::Run);
            match kind {
                "console" => steps.extend(console(&block).into_iter().map(|step| Step { treatment: treatment.clone(), ..step })),
                "sh" => {
                    let command = block.iter().map(|(_, line)| *line).collect::<Vec<_>>().join("\n");
                    steps.push(Step { line: at + 1 + block.len(), command, shown: None, treatment });
                }
                _ => {}
            }
        } else if let Some(comment) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
            treatment = match comment.split_once(": ") {
                Some(("not run", why)) => Treatment::NotRun(why.to_owned()),
                Some(("goes on", text)) => Treatment::GoesOn(text.to_owned()),
                _ => treatment,
            };
        } else if !line.is_empty() {
            treatment = Treatment::Run;
        }
    }
    steps
}

fn console(block: &[(usize, &str)]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (at, line) in block {
        let continued = steps.last_mut().filter(|step| step.shown.is_none() && goes_on(&step.command));
        match (line.strip_prefix("$ "), continued) {
            (_, Some(step)) => {
                step.command = format!("{}\n{line}", step.command);
                step.line = *at;
            }
            (Some(command), None) => steps.push(Step { line: *at, command: command.to_owned(), shown: None, treatment: Treatment::Run }),
            (None, None) => {
                let Some(step) = steps.last_mut() else { continue };
                let shown = step.shown.get_or_insert_default();
                *shown += line;
                shown.push('\n');
            }
        }
    }
    steps
}

/// Whether the next line belongs to the command: after a backslash, or in a text that ends with a line `END`.
fn goes_on(command: &str) -> bool {
    command.ends_with('\\') || command.contains("<<'END'") && !command.ends_with("\nEND")
}

/// How many of a page's commands were run, and what the others are.
#[derive(Debug, Default)]
pub struct Ran {
    pub run: usize,
    pub not_run: Vec<(usize, String)>,
    /// Steps of which the page shows something else, with what is printed now: where pages are written anew.
    pub differing: Vec<(Step, String)>,
}

impl Ran {
    /// The page with what is printed now. What has an ellipsis is left to whoever wrote it.
    pub fn updated(&self, page: &str) -> String {
        let mut lines: Vec<&str> = page.lines().collect();
        for (Step { line, shown, .. }, printed) in self.differing.iter().rev() {
            let old = shown.as_deref().unwrap_or_default().lines().count();
            lines.splice(*line..line + old, printed.lines());
        }
        lines.join("\n") + "\n"
    }
}

/// Where a page's commands are run.
pub struct Session {
    shell: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// For what is written meanwhile.
    folder: PathBuf,
    staying: Vec<Staying>,
    /// What stands for what in commands.
    replaced: Vec<(String, String)>,
    updates: bool,
}

/// A command that goes on.
struct Staying {
    process: Child,
    log: PathBuf,
}

impl Drop for Staying {
    /// As Ctrl-C does it.
    fn drop(&mut self) {
        let group = Pid::from_child(&self.process);
        let _ = kill_process_group(group, Signal::INT);
        let _ = self.process.wait();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Whether pages are to be written anew.
pub fn updates() -> bool {
    std::env::var_os("STOWAGE_UPDATE_DOCS").is_some()
}

/// Of cargo and make, which these commands call themselves.
fn is_of_the_build(name: &str) -> bool {
    (name.starts_with("CARGO_") && !["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_INCREMENTAL"].contains(&name))
        || ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "LD_LIBRARY_PATH", "RUSTC", "RUSTDOC"].contains(&name)
}

fn without_the_build(command: &mut Command) {
    for (name, _) in std::env::vars().filter(|(name, _)| is_of_the_build(name)) {
        command.env_remove(name);
    }
}

impl Session {
    /// In the folder `at`; `prepare` may set the environment. What the commands write to temporary files goes to `folder`.
    pub fn start(at: &Path, folder: &Path, prepare: impl FnOnce(&mut Command)) -> Result<Session> {
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc"]).current_dir(at).env("TMPDIR", folder).env("TERM", "dumb").env("COLUMNS", "200");
        without_the_build(&mut command);
        prepare(&mut command);
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().context("starting bash")?;
        let stdin = shell.stdin.take().context("bash's input")?;
        let stdout = BufReader::new(shell.stdout.take().context("bash's output")?);
        let mut session =
            Session { shell, stdin, stdout, folder: folder.to_owned(), staying: Vec::new(), replaced: Vec::new(), updates: updates() };
        session.run("exec 2>&1")?;
        Ok(session)
    }

    /// Has `from` stand for `to` in all commands.
    pub fn replace(&mut self, from: &str, to: &str) {
        self.replaced.push((from.to_owned(), to.to_owned()));
    }

    /// Runs all that can be run, and compares what the page shows with what is printed.
    pub async fn follow(&mut self, page: &str) -> Result<Ran> {
        let mut ran = Ran::default();
        for step in steps(page) {
            match &step.treatment {
                Treatment::NotRun(why) => ran.not_run.push((step.line, why.clone())),
                Treatment::GoesOn(text) => {
                    let printed = self.begin(&step.command, text).await?;
                    self.compare(&step, 0, printed, &mut ran)?;
                }
                Treatment::Run => {
                    let (status, printed) = self.run(&step.command)?;
                    self.compare(&step, status, printed, &mut ran)?;
                }
            }
        }
        Ok(ran)
    }

    fn compare(&self, step: &Step, status: i32, printed: String, ran: &mut Ran) -> Result<()> {
        ran.run += 1;
        let can_be_updated = self.updates && step.shown.as_ref().is_some_and(|shown| !shown.contains('…'));
        match check(step, status, &printed) {
            Err(_) if can_be_updated => ran.differing.push((step.clone(), printed)),
            checked => checked?,
        }
        Ok(())
    }

    fn replaced(&self, command: &str) -> String {
        self.replaced.iter().fold(command.to_owned(), |command, (from, to)| command.replace(from, to))
    }

    /// The exit status, and what was printed.
    pub fn run(&mut self, command: &str) -> Result<(i32, String)> {
        const END: &str = "the-command-is-over";
        let file = self.folder.join("command.sh");
        fs::write(&file, self.replaced(command)).context("writing a command")?;
        // Sourced, so that what it sets stays set; without an input, so that it does not read what comes next.
        writeln!(self.stdin, "source {} </dev/null; printf '\\n{END} %s\\n' $?", file.display()).context("handing a command to bash")?;
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            ensure!(self.stdout.read_line(&mut line).context("reading what bash prints")? > 0, "bash ended with `{command}`: {printed}");
            if let Some(status) = line.strip_prefix(END) {
                // The line break before is ours.
                printed.pop();
                return Ok((status.trim().parse().context("an exit status")?, printed));
            }
            printed += &line;
        }
    }

    /// Starts what goes on, and waits until it says that it is up.
    async fn begin(&mut self, command: &str, text: &str) -> Result<String> {
        let log = self.folder.join(format!("staying-{}.log", self.staying.len()));
        let output = fs::File::create(&log).context("making a log")?;
        // With the shell's own environment as it is now.
        let file = self.folder.join("environment.sh");
        self.run(&format!("export -p > {}; pwd > {}.folder", file.display(), file.display()))?;
        let at = fs::read_to_string(file.with_extension("sh.folder")).context("reading where the shell is")?;
        let script = format!("source {}; {}", file.display(), self.replaced(command));
        let mut process = Command::new("bash");
        process.args(["--noprofile", "--norc", "-c", &script]).current_dir(at.trim_end()).stdin(Stdio::null()).process_group(0);
        process.stdout(output.try_clone().context("a log")?).stderr(output);
        without_the_build(&mut process);
        let mut staying = Staying { process: process.spawn().with_context(|| format!("starting `{command}`"))?, log };
        let mut ended = false;
        let printed = || fs::read_to_string(&staying.log).unwrap_or_default();
        watch::until(&format!("`{command}` prints `{text}`"), || {
            ended = matches!(staying.process.try_wait(), Ok(Some(_)));
            ended || printed().contains(text)
        })
        .await
        .with_context(printed)?;
        let found = printed();
        ensure!(!ended, "`{command}` ended: {found}");
        self.staying.push(staying);
        Ok(found)
    }
}

fn check(step: &Step, status: i32, printed: &str) -> Result<()> {
    let Step { line, command, shown, .. } = step;
    match shown {
        None if status != 0 => bail!("line {line}: `{command}` ended with {status}:\n{printed}"),
        Some(shown) if !shows(shown, printed) => bail!("line {line}: `{command}` prints\n{printed}\nand the page shows\n{shown}"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const PAGE: &str = "\
# A page

```console
$ one \\
    more
it prints
this
$ two
```

<!-- not run: needs a GPU -->
```sh
three
four
```

```yaml
a: b
```

<!-- goes on: It serves -->

```console
$ five
```
";

    #[test]
    fn commands_are_found_with_what_they_print_and_how_they_are_treated() {
        let step = |line, command: &str, shown: Option<&str>, treatment| Step {
            line,
            command: command.to_owned(),
            shown: shown.map(str::to_owned),
            treatment,
        };
        let expected = [
            step(5, "one \\\n    more", Some("it prints\nthis\n"), Treatment::Run),
            step(8, "two", None, Treatment::Run),
            step(14, "three\nfour", None, Treatment::NotRun("needs a GPU".into())),
            step(24, "five", None, Treatment::GoesOn("It serves".into())),
        ];
        assert_eq!(steps(PAGE), expected);
    }

    #[test]
    fn a_page_is_written_anew_where_it_shows_something_else() {
        let differing = steps(PAGE).into_iter().take(1).map(|step| (step, "only this\n".to_owned())).collect();
        let updated = Ran { differing, ..Ran::default() }.updated(PAGE);
        assert_eq!(updated, PAGE.replace("it prints\nthis\n", "only this\n"));
    }

    #[tokio::test]
    async fn commands_are_run_in_one_shell_and_what_differs_or_fails_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let follow = async |page: &str| Session::start(folder.path(), folder.path(), |_| {}).unwrap().follow(page).await;
        assert_eq!(follow("```console\n$ cat <<'END'\n$ a\nEND\n…\n$ true\n```\n").await.unwrap().run, 2);
        let page = "```console\n$ there=here; cd /\n$ echo \"$there in $PWD\"\nhere in /\n$ ls /none; false\n…\n```\n<!-- not run: why not -->\n```sh\nfalse\n```\n";
        let ran = follow(page).await.unwrap();
        assert_eq!((ran.run, ran.not_run), (3, vec![(10, "why not".to_owned())]));
        let wrong = follow("```console\n$ echo one\ntwo\n```\n").await.unwrap_err().to_string();
        assert!(wrong.contains("line 2: `echo one` prints\none\n"), "{wrong}");
        let failed = follow("```sh\ncat /none\n```\n").await.unwrap_err().to_string();
        assert!(failed.contains("ended with 1") && failed.contains("No such file"), "{failed}");
    }
}
