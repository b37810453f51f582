//! The command as a user has it: a source, flags, an exit status, and what is printed.

use std::path::{Path, PathBuf};

use clap::Parser;
use stowage_crds::model_node::{DeviceBackend, DeviceStatus, ModelFile, SystemStatus};
use stowage_crds::{ModelNode, ModelNodeSpec, ModelNodeStatus};
use stowage_placement::gguf::write::HeaderWriter;
use stowage_placement::layout::Backend;
use stowage_placement::testing::{SMOLLM2_135M, Shape};
use stowage_placement::{Bytes, DeviceAllocation, NodeDevices, PlanReport, Reason, Tokens};

use super::{Answer, DOES_NOT_FIT, FITS, Machine, PlanArgs, PlanError, Planned, answer, plan, print};

mod compared;
mod drawn;
mod pages;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    plan: PlanArgs,
}

fn args(line: &str) -> PlanArgs {
    Command::try_parse_from(std::iter::once("plan").chain(line.split_whitespace())).unwrap().plan
}

fn machine() -> Machine {
    Machine { devices: NodeDevices::new(Vec::new(), Bytes::gib(16)), gpu_backend: Backend::Cuda }
}

impl Planned {
    /// The only report.
    fn report(self) -> PlanReport {
        match self.answer {
            Answer::Plan(report) => *report,
            Answer::Compared(reports) => panic!("{} types were compared", reports.len()),
        }
    }
}

/// A directory with `smollm2.gguf`, the header alone.
struct Models(tempfile::TempDir);

impl Models {
    fn new() -> Models {
        let models = Models(tempfile::tempdir().unwrap());
        models.write("smollm2.gguf", &SMOLLM2_135M.writer().header());
        models
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn args(&self, name: &str, flags: &str) -> PlanArgs {
        args(&format!("{} {flags}", self.path(name).display()))
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.0.path()).join(name)
    }

    async fn plan(&self, name: &str, flags: &str) -> PlanReport {
        self.planned(name, flags).await.report()
    }

    async fn compared(&self, name: &str, flags: &str) -> Vec<PlanReport> {
        self.planned(name, flags).await.answer.reports().to_vec()
    }

    async fn planned(&self, name: &str, flags: &str) -> Planned {
        plan(&self.args(name, flags), &machine()).await.unwrap()
    }

    async fn printed(&self, name: &str, flags: &str) -> String {
        print(&self.planned(name, flags).await, &self.args(name, flags)).unwrap()
    }

    async fn error(&self, name: &str, flags: &str) -> String {
        let error: PlanError = plan(&self.args(name, flags), &machine()).await.unwrap_err();
        error.to_string()
    }
}

#[tokio::test]
async fn a_header_alone_is_planned_on_the_gpus_that_the_flags_name() {
    let models = Models::new();
    let report = models.plan("smollm2.gguf", "--num-ctx 2048 --gpu 4GiB --gpu 2GiB").await;
    assert!(report.fit.fits);
    assert_eq!(report.footprint.kv_cache_bytes, Bytes::mib(45));
    assert_eq!(report.plan.devices[0].id, "gpu1");
    assert_eq!(report.plan.devices[0].free_bytes, Bytes::mib(2048 - 256));
    assert_eq!(report.plan.devices[0].overhead_bytes, Bytes::mib(512));
    assert_eq!(report.model.size_bytes, Bytes(SMOLLM2_135M.writer().file_size()));
}

#[tokio::test]
async fn without_gpus_named_the_machine_counts() {
    let models = Models::new();
    let report = models.plan("smollm2.gguf", "--num-gpu 0").await;
    assert_eq!((report.plan.processor.as_str(), report.request.num_ctx), ("100% CPU", Tokens(8192)));
    assert_eq!(report.plan.devices[0].free_bytes, Bytes::gib(16));
    let report = models.plan("smollm2.gguf", "--num-gpu 0 --memory 1GiB").await;
    assert_eq!(report.plan.devices[0].free_bytes, Bytes::mib(768));
    assert!(args("x").needs_machine() && args("x --gpu 1G").needs_machine() && !args("x --gpu 1G --memory 1G").needs_machine());
}

#[tokio::test]
async fn a_context_beyond_the_trained_one_does_not_fit_and_its_bytes_are_printed() {
    let models = Models::new();
    let flags = "--num-ctx 32768 --gpu 24GiB";
    let report = models.plan("smollm2.gguf", flags).await;
    assert_eq!((report.fit.fits, report.fit.reason), (false, Reason::ContextBeyondTrained));
    let table = models.printed("smollm2.gguf", flags).await;
    assert!(table.contains("720.0 MiB"), "{table}");
}

#[tokio::test]
async fn a_deployments_yaml_asks_and_flags_ask_louder() {
    let models = Models::new();
    let yaml = "---\napiVersion: v1\nkind: Namespace\n---\napiVersion: stowage.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: small}\n\
                spec:\n  model: {path: smollm2.gguf}\n  parameters: {num_ctx: 4096, num_gpu: 999, num_batch: 64}\n  parallel: 2\n";
    models.write("small.yaml", yaml.as_bytes());
    let report = models.plan("small.yaml", "--gpu 4GiB").await;
    assert_eq!((report.request.num_ctx, report.request.parallel, report.request.num_batch), (Tokens(4096), 2, 64));
    assert_eq!(report.request.num_gpu, 999);
    let report = models.plan("small.yaml", "--gpu 4GiB --num-ctx 1024 --num-gpu -1 --parallel 1").await;
    assert_eq!((report.request.num_ctx, report.request.num_gpu, report.request.parallel), (Tokens(1024), -1, 1));
}

/// A node with a simulated GPU of 2 GiB and the model in its directory; 700 MiB of the GPU are promised to ModelDeployment `small`.
fn node() -> ModelNode {
    let mut assignment = crate::node::testing::assignment("a");
    assignment.model_deployment.name = "small".into();
    assignment.plan.devices[0] =
        DeviceAllocation { id: "GPU-a".into(), total_bytes: Bytes::mib(700), ..assignment.plan.devices[0].clone() };
    let mut node = ModelNode::new("n1", ModelNodeSpec { assignments: vec![assignment], devices: Vec::new() });
    let device =
        DeviceStatus { uuid: "GPU-a".into(), backend: DeviceBackend::Simulated, total_bytes: Bytes::gib(2), ..DeviceStatus::default() };
    let model = ModelFile { path: "sub/smollm2.gguf".into(), summary: Some(SMOLLM2_135M.summary()), ..ModelFile::default() };
    let system = SystemStatus { memory_bytes: Bytes::gib(16), ..SystemStatus::default() };
    node.status = Some(ModelNodeStatus { devices: vec![device], models: vec![model], system: Some(system), ..ModelNodeStatus::default() });
    node
}

#[tokio::test]
async fn a_plan_for_a_node_counts_what_is_promised_there_but_for_what_is_planned_anew() {
    let models = Models::new();
    models.write("node.yaml", stowage_crds::yaml::to_string(&node()).unwrap().as_bytes());
    let flags = format!("--node {}", models.path("node.yaml").display());
    let offered = async |name: &str| models.plan(name, &flags).await.plan.devices[0].free_bytes;
    let all = Bytes(Bytes::gib(2).0 - Bytes::mib(256).0);
    assert_eq!(offered("smollm2.gguf").await, all.saturating_sub(Bytes::mib(700)), "the margin and what is promised are taken from it");
    let of = |name: &str, path: &str| {
        let head = "apiVersion: stowage.dev/v1alpha1\nkind: ModelDeployment";
        format!("{head}\nmetadata: {{name: {name}}}\nspec: {{model: {{path: {path}}}, parameters: {{num_ctx: 512}}}}\n")
    };
    models.write("other.yaml", of("other", "sub/smollm2.gguf").as_bytes());
    models.write("small.yaml", of("small", "sub/smollm2.gguf").as_bytes());
    assert_eq!(offered("other.yaml").await, all.saturating_sub(Bytes::mib(700)));
    assert_eq!(offered("small.yaml").await, all, "its own bytes are free to it");
    models.write("missing.yaml", of("small", "nowhere.gguf").as_bytes());
    let error = models.error("missing.yaml", &flags).await;
    assert!(error.contains("node n1 has no nowhere.gguf in its model directory; it has sub/smollm2.gguf"), "{error}");
    let error = models.error("smollm2.gguf", &format!("--node {}", models.path("small.yaml").display())).await;
    assert!(error.contains("it has no document of kind ModelNode"), "{error}");
}

#[tokio::test]
async fn json_and_yaml_are_the_type_that_the_status_carries() {
    let models = Models::new();
    let flags = "--num-ctx 8192 --gpu 1GiB";
    let report = models.plan("smollm2.gguf", flags).await;
    let printed = async |format: &str| models.printed("smollm2.gguf", &format!("{flags} --format {format}")).await;
    let json: PlanReport = serde_json::from_str(&printed("json").await).unwrap();
    assert_eq!(json, report);
    let yaml: PlanReport = stowage_crds::yaml::from_str(&printed("yaml").await).unwrap();
    assert_eq!(yaml, report);
}

#[tokio::test]
async fn the_table_shows_needs_devices_and_the_verdict_in_80_columns() {
    let models = Models::new();
    let table = models.printed("smollm2.gguf", "--num-ctx 8192 --num-gpu 999 --gpu 1GiB").await;
    for part in [
        "NEEDS",
        "DEVICE",
        "Fits       no: InsufficientVRAM",
        "What would make it fit",
        "numCtx",
        "host",
        ">8192 ###",
        "# weights  = cache  + working space  . GPU libraries  | where a GPU ends",
    ] {
        assert!(table.contains(part), "{part} is missing:\n{table}");
    }
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
}

#[tokio::test]
async fn bad_input_is_named() {
    let models = Models::new();
    let header = SMOLLM2_135M.writer().header();
    models.write("cut.gguf", &header[..500]);
    models.write("page.gguf", b"<!doctype html><p>not found</p>");
    models.write("hostile.gguf", &HeaderWriter::new().claim_tensors(1 << 60).header());
    models.write("odd.gguf", &HeaderWriter::architecture("rwkv9").header());
    models.write("notes.txt", b"just: words");
    models.write("empty.yaml", b"kind: Pod\n");
    models.write("two.yaml", b"kind: ModelDeployment\n---\nkind: ModelDeployment\n");
    models.write("none.yaml", b"kind: ModelDeployment\napiVersion: stowage.dev/v1alpha1\nmetadata: {}\nspec: {model: {}}\n");
    for (name, flags, said) in [
        ("cut.gguf", "", "offset 8 claims 272 tensors, which take at least 6800 bytes, but the file ends at 500: it is cut off"),
        ("page.gguf", "", "not a GGUF file: it begins with \"<!do\""),
        ("hostile.gguf", "", "claims 1152921504606846976 tensors"),
        ("odd.gguf", "", "architecture `rwkv9` is not known"),
        ("missing.gguf", "", "missing.gguf: No such file"),
        ("notes.txt", "", "is neither a GGUF file nor a ModelDeployment's YAML"),
        ("empty.yaml", "", "no document of kind ModelDeployment"),
        ("two.yaml", "", "more than one ModelDeployment"),
        ("none.yaml", "", "needs exactly one source"),
        ("smollm2.gguf", "--num-ctx 1099511627776", "num_ctx 1099511627776 is more than any model has"),
        ("smollm2.gguf", "--parallel 4294967295 --num-ctx 4294967296", "more bytes than 64 bits can count"),
    ] {
        let error = models.error(name, flags).await;
        assert!(error.contains(said), "{name}: {error}");
    }
}

/// Serves files by their paths on a loopback port, without ranges.
async fn serve<const N: usize>(files: [(String, Vec<u8>); N]) -> String {
    let serve =
        |routes: axum::Router, (path, file): (String, Vec<u8>)| routes.route(&path, axum::routing::get(move || async move { file }));
    let routes = files.into_iter().fold(axum::Router::new(), serve);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

#[tokio::test]
async fn a_file_behind_a_url_is_planned_as_it_would_be_on_disk() {
    let file = tiny().file(|_, _| 0);
    let models = Models::new();
    models.write("model.gguf", &file);
    let server = serve([("/model.gguf".into(), file)]).await;
    let remote = plan(&args(&format!("{server}/model.gguf --gpu 4G --memory 4G")), &machine()).await.unwrap().report();
    assert_eq!(remote, models.plan("model.gguf", "--gpu 4G --memory 4G").await);

    let yaml = format!(
        "kind: ModelDeployment\napiVersion: stowage.dev/v1alpha1\nmetadata: {{}}\nspec: {{model: {{http: {{url: '{server}/model.gguf'}}}}}}\n"
    );
    models.write("remote.yaml", yaml.as_bytes());
    assert_eq!(models.plan("remote.yaml", "--gpu 4G --memory 4G").await.model, remote.model);

    let missing = plan(&args(&format!("{server}/other.gguf")), &machine()).await.unwrap_err().to_string();
    assert!(missing.contains("404"), "{missing}");
}

fn tiny() -> HeaderWriter {
    Shape { blocks: 2, embedding: 64, heads: 2, kv_heads: 1, feed_forward: 64, vocabulary: 64, ..SMOLLM2_135M }.writer()
}

#[tokio::test]
async fn a_split_model_is_planned_as_one_be_it_here_or_behind_a_url() {
    let models = Models::new();
    let parts = tiny().into_parts(2);
    let (first, last) = (&parts[0], &parts[1]);
    models.write("m-00001-of-00002.gguf", &first.header());
    let missing = models.error("m-00001-of-00002.gguf", "").await;
    assert!(missing.contains("m-00002-of-00002.gguf: No such file"), "{missing}");
    models.write("m-00002-of-00002.gguf", &last.header());
    let here = models.plan("m-00001-of-00002.gguf", "--gpu 4G --memory 4G").await;
    assert_eq!(here.model.size_bytes, Bytes(first.file_size() + last.file_size()));
    assert_eq!(here.model.total_layers.0, 3);
    let second = models.error("m-00002-of-00002.gguf", "").await;
    assert!(second.contains("is part 2 of 2 of a split model") && second.contains("m-00001-of-00002.gguf"), "{second}");

    let path = |number: u32| format!("/m-0000{number}-of-00002.gguf");
    let server = serve([(path(1), first.file(|_, _| 0)), (path(2), last.file(|_, _| 0))]).await;
    let remote = plan(&args(&format!("{server}{} --gpu 4G --memory 4G", path(1))), &machine()).await.unwrap().report();
    assert_eq!(remote, here);
}

#[tokio::test]
async fn a_deployment_of_the_hub_is_planned_from_the_commit_that_its_revision_stands_for() {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let answer = format!(r#"{{"sha": "{commit}"}}"#).into_bytes();
    let file = tiny().file(|_, _| 0);
    let files = [("/api/models/a/b/revision/main".into(), answer), (format!("/a/b/resolve/{commit}/sub/model.gguf"), file.clone())];
    let server = serve(files).await;
    let models = Models::new();
    let yaml = |file: &str| {
        let model = format!("{{huggingFace: {{repository: a/b, file: {file}}}}}");
        format!("kind: ModelDeployment\napiVersion: stowage.dev/v1alpha1\nmetadata: {{}}\nspec: {{model: {model}}}\n")
    };
    models.write("hub.yaml", yaml("sub/model.gguf").as_bytes());
    models.write("other.yaml", yaml("other.gguf").as_bytes());
    models.write("model.gguf", &file);
    let report = models.plan("hub.yaml", &format!("--gpu 4G --memory 4G --hf-endpoint {server}")).await;
    assert_eq!(report.model, models.plan("model.gguf", "--gpu 4G").await.model);
    let error = models.error("other.yaml", &format!("--hf-endpoint {server}")).await;
    assert!(error.contains(&format!("{server}/a/b/resolve/{commit}/other.gguf: the server says 404")), "{error}");
}

#[tokio::test]
async fn with_layers_each_has_a_row_that_says_where_it_goes() {
    let models = Models::new();
    let flags = "--num-ctx 2048 --num-gpu 3 --gpu 4GiB";
    let table = models.printed("smollm2.gguf", &format!("{flags} --layers")).await;
    let row = |index: &str| table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| row.first() == Some(&index));
    assert_eq!(row("0").unwrap()[1], "host", "{table}");
    assert_eq!(row("27").unwrap()[..2], ["27", "host"]);
    assert_eq!(row("28").unwrap()[..2], ["28", "gpu0"]);
    assert_eq!(row("29").unwrap()[4..6], ["1.50", "MiB"]);
    assert_eq!(row("30").unwrap()[4..6], ["0", "B"]);
    assert!(row("31").is_none() && !models.printed("smollm2.gguf", flags).await.contains("LAYER  "), "{table}");
}

#[tokio::test]
async fn what_a_file_says_can_not_steer_the_terminal() {
    let models = Models::new();
    let mut named = SMOLLM2_135M.writer().header();
    let at = named.windows(7).position(|window| window == b"a model").unwrap();
    named[at..at + 7].copy_from_slice(b"\x1b[2Jbad");
    models.write("named.gguf", &named);
    let table = models.printed("named.gguf", "--gpu 4GiB").await;
    assert!(!table.contains('\u{1b}') && table.contains("[2Jbad"), "{table}");
    models.write("odd.gguf", &HeaderWriter::architecture("\u{1b}[31mred").header());
    let error = super::printable(&models.error("odd.gguf", "").await);
    assert!(!error.contains('\u{1b}'), "{error}");
}

#[test]
fn flags_that_can_not_be_are_refused() {
    for line in [
        "",
        "x --compare f16,f16",
        "x --compare f16,q5",
        "x --compare",
        "x --num-ctx 0",
        "x --num-gpu -2",
        "x --parallel 0",
        "x --kv-cache-type q5",
        "x --gpu lots",
        "x --format xml",
    ] {
        assert!(Command::try_parse_from(std::iter::once("plan").chain(line.split_whitespace())).is_err(), "{line}");
    }
}
