//! The pages of `docs/` are made by the commands on them: each is run again, and what it prints and draws must be what the page shows.
//! `STOWAGE_UPDATE_DOCS=1` writes pages and charts anew instead.
//!
//! Pages whose commands need a cluster say so, and are left to the test that has one.
//!
//! A block of type `console` has commands after `$ `, each followed by what it prints. A table below a line with a command that names ROW and COLUMN has
//! in each cell what that command says of its processor. Commands run in `docs/`.

use std::io::Write;
use std::iter::Peekable;
use std::process::Stdio;

use super::*;

const OF_A_CLUSTER: &str = "<!-- its commands are run by tests/end-to-end/tests/pages.rs -->";

#[tokio::test]
async fn every_page_shows_what_its_commands_print_and_draw() {
    let update = std::env::var_os("STOWAGE_UPDATE_DOCS").is_some();
    let folder = std::fs::read_dir(docs()).unwrap().map(|entry| entry.unwrap().path());
    let is_of_a_cluster = |path: &PathBuf| std::fs::read_to_string(path).unwrap().contains(OF_A_CLUSTER);
    let pages = folder.filter(|path| path.extension().is_some_and(|extension| extension == "md")).filter(|path| !is_of_a_cluster(path));
    let pages: Vec<PathBuf> = pages.collect();
    assert!(!pages.is_empty());
    for page in pages {
        for (path, made) in Page::of(&page).await.files(page) {
            if update {
                std::fs::write(path, made).unwrap();
            } else {
                let shown = std::fs::read_to_string(&path).unwrap_or_default();
                assert!(shown == made, "{} is not what its commands make now; with STOWAGE_UPDATE_DOCS=1 it is:\n{made}", path.display());
            }
        }
    }
}

/// The page is about the model of a case in `placement/tests/golden`: what it shows must be what was reviewed there.
#[tokio::test]
async fn the_model_of_the_page_on_the_original_report_is_planned_as_its_golden_case() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../placement/tests/golden/cases/deepseek-r1-32b-report.output.yaml");
    let case: serde_json::Value = stowage_crds::yaml::from_str(&std::fs::read_to_string(case).unwrap()).unwrap();
    let mut compared = 0;
    for request in case["requests"].as_array().unwrap() {
        for node in request["nodes"].as_array().unwrap() {
            let gpus = node["gpus"].as_str().unwrap().replace(" of ", "x").replace(' ', "");
            let num_ctx = &request["request"]["numCtx"];
            let flags = format!("testdata/deepseek-r1-32b.gguf --memory 2100GiB --num-ctx {num_ctx} --gpu {gpus}");
            let PlanReport { footprint, plan, fit, .. } = plan(&in_docs(args(&flags)), &machine()).await.unwrap().report();
            assert_eq!(footprint.total_bytes.0, request["footprint"]["totalBytes"], "{flags}");
            assert_eq!(plan.processor, node["fits"]["processor"], "{flags}");
            assert_eq!(format!("{}/{}", plan.gpu_layers, plan.total_layers), node["fits"]["layers"], "{flags}");
            assert_eq!(fit.shortfall_bytes.0, node["shortfall"], "{flags}");
            assert_eq!(
                [fit.max_num_ctx_on_gpu.0, fit.max_num_ctx.0],
                ["onGpu", "anywhere"].map(|whereabouts| node["maxNumCtx"][whereabouts].as_u64().unwrap())
            );
            for device in plan.devices {
                assert_eq!(device.total_bytes.0, node[&device.id]["total"], "{flags}: {}", device.id);
                compared += 1;
            }
        }
    }
    assert!(compared >= 32, "{compared} devices");
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn in_docs(args: PlanArgs) -> PlanArgs {
    PlanArgs { source: docs().join(args.source).to_string_lossy().into_owned(), ..args }
}

/// A page as its commands make it.
#[derive(Default)]
struct Page {
    text: String,
    /// Charts, by their paths in `docs/`.
    charts: Vec<(PathBuf, String)>,
}

impl Page {
    async fn of(path: &Path) -> Page {
        let old = std::fs::read_to_string(path).unwrap();
        let mut page = Page::default();
        let mut lines = old.lines().peekable();
        while let Some(line) = lines.next() {
            page.line(line);
            let command = line.split('`').find(|code| code.starts_with("stowage-agent plan ") && code.contains("ROW"));
            match command {
                _ if line == "```console" => page.console(&mut lines).await,
                Some(command) => page.table(command, &mut lines).await,
                None => {}
            }
        }
        page
    }

    fn files(self, page: PathBuf) -> Vec<(PathBuf, String)> {
        let charts = self.charts.into_iter().map(|(path, chart)| (docs().join(path), chart));
        std::iter::once((page, self.text)).chain(charts).collect()
    }

    fn line(&mut self, line: &str) {
        self.text += line;
        self.text.push('\n');
    }

    /// The commands of a block, each with what it prints now.
    async fn console<'a>(&mut self, lines: &mut Peekable<impl Iterator<Item = &'a str>>) {
        while let Some(line) = lines.next_if(|line| *line != "```") {
            let Some(command) = line.strip_prefix("$ ") else { continue };
            self.line(line);
            let mut command = command.to_owned();
            while command.ends_with('\\') {
                let more = lines.next().unwrap();
                self.line(more);
                command = format!("{} {}", command.trim_end_matches('\\'), more.trim());
            }
            let printed = self.printed(&command).await;
            self.text += &printed;
        }
    }

    async fn printed(&mut self, command: &str) -> String {
        if let Some((command, filter)) = command.split_once(" | ") {
            return filtered(&Box::pin(self.printed(command)).await, filter);
        }
        if let Some(file) = command.strip_prefix("cat ") {
            return std::fs::read_to_string(docs().join(file)).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let mut args =
            in_docs(args(command.strip_prefix("stowage-agent plan ").unwrap_or_else(|| panic!("`{command}` is not known here"))));
        let drawn = args.svg.replace(folder.path().join("chart.svg")).map(|shown| (shown, folder.path().join("chart.svg")));
        let (printed, _) = answer(&args, &machine()).await.unwrap();
        self.charts.extend(drawn.map(|(shown, drawn)| (shown, std::fs::read_to_string(drawn).unwrap())));
        printed
    }

    /// The next table: its first row has the columns, the first cell of each other row what the row is of.
    async fn table<'a>(&mut self, command: &str, lines: &mut Peekable<impl Iterator<Item = &'a str>>) {
        while let Some(line) = lines.next_if(|line| !line.starts_with('|')) {
            self.line(line);
        }
        let (head, rule) = (lines.next().unwrap(), lines.next().unwrap());
        self.line(head);
        self.line(rule);
        let columns: Vec<&str> = cells(head).skip(1).collect();
        while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
            let row = cells(row).next().unwrap();
            let mut shown = vec![row.to_owned()];
            for column in &columns {
                let command = command.replace("ROW", row).replace("COLUMN", column);
                let args = in_docs(args(command.trim_start_matches("stowage-agent plan ")));
                shown.push(plan(&args, &machine()).await.unwrap().report().plan.processor);
            }
            self.line(&format!("| {} |", shown.join(" | ")));
        }
    }
}

fn cells(row: &str) -> impl Iterator<Item = &str> {
    row.trim_matches('|').split('|').map(str::trim)
}

/// What a filter such as `grep` makes of a text.
fn filtered(text: &str, filter: &str) -> String {
    let mut shell = std::process::Command::new("sh");
    let mut running = shell.args(["-c", filter]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(running.wait_with_output().unwrap().stdout).unwrap()
}
