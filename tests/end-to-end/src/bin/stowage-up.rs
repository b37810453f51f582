//! Everything up on one machine: a cluster, the operator, an agent, a ModelDeployment, an answer. Behind `make run`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use stowage_control_plane::processes::wait_for;
use stowage_crds::{ModelDeployment, yaml};
use stowage_end_to_end::cluster::program;
use stowage_end_to_end::{AgentOptions, Cluster, Settings, SimulatedGpu, watch};
use stowage_placement::Bytes;
use tokio::signal::unix::{SignalKind, signal};

const MANIFEST: &str = include_str!("../../../../examples/smollm2.yaml");
const NAME: &str = "smollm2";
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

/// Runs Stowage on this machine: a Kubernetes control plane, the operator, one agent, and a small model that answers a question.
#[derive(Parser)]
struct Arguments {
    /// The GGUF file of SmolLM2-135M-Instruct; its folder becomes the agent's model directory.
    #[arg(long)]
    model: PathBuf,
    /// End after the first answer.
    #[arg(long)]
    once: bool,
    /// `new` starts a control plane; `current` uses the cluster that kubectl points at.
    #[arg(long, value_enum, default_value = "new")]
    cluster: Which,
    /// Gives the node a simulated GPU of this many GiB. What runs there is computed on the CPU.
    #[arg(long, value_name = "GIB")]
    simulated_gpu: Option<u64>,
    #[arg(long, default_value = "What is the capital of Japan?")]
    question: String,
    /// While it serves, a file that shells source to find everything: the cluster, the programs, the model's API.
    #[arg(long, value_name = "FILE")]
    environment: Option<PathBuf>,
    /// Manifests to apply beside the example, each of a ModelDeployment in the namespace `default`.
    #[arg(long, value_name = "FILE")]
    also: Vec<PathBuf>,
    /// Instead of asking: run this while the model serves, then end with its exit status. STOWAGE_DOOR_URL, STOWAGE_WORKER_URL, STOWAGE_MODEL and KUBECONFIG
    /// say where everything is.
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    New,
    Current,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Whatever was started is dropped with the future that holds it, and its processes end with it.
    tokio::select! {
        result = run(&arguments) => match result {
            Ok(code) => code,
            Err(error) => {
                eprintln!("stowage-up: {error:#}");
                ExitCode::FAILURE
            }
        },
        () = interrupted() => {
            eprintln!("interrupted: everything is ended");
            // Not a return: the runtime would wait for a build of the control plane that may still go on, which ends with this process.
            std::process::exit(130)
        }
    }
}

/// Ctrl-C, or what `kill` sends.
async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        // A failure to listen must not look like Ctrl-C.
        result = tokio::signal::ctrl_c() => if result.is_err() { std::future::pending().await },
        _ = terminate.recv() => {}
    }
}

async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    let step = |what: &str| eprintln!("[{:5.1} s] {what}", started.elapsed().as_secs_f64());
    step("starting the control plane and the operator");
    let mut cluster = Cluster::start(Settings { kubeconfig: kubeconfig(arguments.cluster)?, ..Settings::default() }).await?;
    step("starting the node's agent");
    let door = cluster.start_agent(agent(arguments)?).await?.door;
    step("kubectl apply -f examples/smollm2.yaml");
    let code = match use_it(&cluster, door, arguments, &step).await {
        Ok(code) => code,
        Err(error) => bail!("{error:#}\n{}", cluster.logs()),
    };
    cluster.stop()?;
    step("everything is ended");
    Ok(code)
}

async fn use_it(cluster: &Cluster, door: u16, arguments: &Arguments, step: &impl Fn(&str)) -> Result<ExitCode> {
    let endpoint = deploy(cluster, step).await?;
    for manifest in &arguments.also {
        deploy_also(cluster, manifest, step).await?;
    }
    if let [program, rest @ ..] = arguments.command.as_slice() {
        step(&format!("running {program}"));
        return run_command(cluster, door, &endpoint, program, rest).await;
    }
    step("asking it through the OpenAI API");
    let answer = ask(door, &arguments.question).await?;
    println!("> {}\n{answer}", arguments.question);
    if !arguments.once {
        serve_until_interrupted(cluster, door, arguments).await?;
    }
    Ok(ExitCode::SUCCESS)
}

fn kubeconfig(which: Which) -> Result<Option<PathBuf>> {
    if let Which::New = which {
        return Ok(None);
    }
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".kube/config"));
    let path = std::env::var_os("KUBECONFIG").map(PathBuf::from).or_else(home);
    let path = path.filter(|path| path.is_file());
    Ok(Some(path.context("no kubeconfig: CLUSTER=current uses the one named by KUBECONFIG, or ~/.kube/config")?))
}

fn agent(arguments: &Arguments) -> Result<AgentOptions> {
    let model = arguments.model.canonicalize().with_context(|| format!("looking for the model at {}", arguments.model.display()))?;
    let options = AgentOptions::new("this-machine", model.parent().context("a file is in a folder")?);
    let gpus = arguments.simulated_gpu.iter().map(|gib| SimulatedGpu::new(&options.node, 0, Bytes::gib(*gib))).collect();
    Ok(AgentOptions { gpus, ..options })
}

/// Applies the example and waits until it serves; gives its replica's address.
async fn deploy(cluster: &Cluster, step: &impl Fn(&str)) -> Result<String> {
    cluster.apply(MANIFEST)?;
    let ready = watch::model_deployment(&cluster.client, "default", NAME, watch::is_ready).await?;
    step("it is ready: kubectl get modeldeployments");
    print!("{}", cluster.kubectl_output(&["get", "modeldeployments", NAME])?);
    let placement = ready.status.and_then(|status| status.placements.into_iter().next());
    Ok(placement.context("a ModelDeployment that is ready has a placement")?.endpoint)
}

async fn deploy_also(cluster: &Cluster, manifest: &Path, step: &impl Fn(&str)) -> Result<()> {
    let text = std::fs::read_to_string(manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let model: ModelDeployment = yaml::from_str(&text).with_context(|| format!("reading {}", manifest.display()))?;
    let name = model.metadata.name.with_context(|| format!("{} names no ModelDeployment", manifest.display()))?;
    cluster.apply(&text)?;
    watch::model_deployment(&cluster.client, "default", &name, watch::is_ready).await?;
    step(&format!("{name} is ready too"));
    Ok(())
}

/// The replica's port is dialled on the loopback address, where it listens; the address that it advertises is one that EndpointSlices accept.
async fn run_command(cluster: &Cluster, door: u16, endpoint: &str, program: &str, arguments: &[String]) -> Result<ExitCode> {
    let (_, port) = endpoint.rsplit_once(':').with_context(|| format!("the replica's endpoint `{endpoint}` has no port"))?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).kill_on_drop(true).env("KUBECONFIG", cluster.kubeconfig()).env("STOWAGE_MODEL", NAME);
    command.env("STOWAGE_DOOR_URL", format!("http://127.0.0.1:{door}")).env("STOWAGE_WORKER_URL", format!("http://127.0.0.1:{port}"));
    let status = command.status().await.with_context(|| format!("running {program}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Asks the node's door. It learns of a new replica a moment after the API does, so a model that it doesn't know yet is asked for again.
async fn ask(door: u16, question: &str) -> Result<String> {
    let url = format!("http://127.0.0.1:{door}/v1/chat/completions");
    let body = json!({"model": NAME, "temperature": 0, "max_tokens": 64, "messages": [{"role": "user", "content": question}]});
    let client = reqwest::Client::new();
    let answer = wait_for(ANSWER_DEADLINE, async || {
        let response = client.post(&url).json(&body).send().await.ok()?;
        match response.status() {
            status if status.is_success() => Some(response.json::<Value>().await.map_err(anyhow::Error::from)),
            status if status.is_server_error() || status.as_u16() == 404 => None,
            status => Some(Err(anyhow::anyhow!("{url} answered {status}: {}", response.text().await.unwrap_or_default()))),
        }
    });
    let answer = answer.await.with_context(|| format!("no answer from {url} after {} s", ANSWER_DEADLINE.as_secs()))??;
    let content = answer["choices"][0]["message"]["content"].as_str();
    Ok(content.with_context(|| format!("{url} answered without a message: {answer}"))?.trim().to_owned())
}

async fn serve_until_interrupted(cluster: &Cluster, door: u16, arguments: &Arguments) -> Result<()> {
    let own = cluster.folder().join("environment");
    let environment = Environment::write(arguments.environment.clone().unwrap_or(own), cluster, door)?;
    println!(
        "\nIt serves until Ctrl-C. Try, from another terminal:\n  . {}\n  kubectl get modeldeployments -o wide\n  kubectl stowage explain mdl/{NAME}\n  \
         kubectl stowage chat mdl/{NAME}",
        environment.0.display()
    );
    std::future::pending().await
}

/// The file that shells source. It goes with what it leads to.
struct Environment(PathBuf);

impl Environment {
    fn write(path: PathBuf, cluster: &Cluster, door: u16) -> Result<Environment> {
        let programs = programs(cluster)?;
        let url = format!("http://127.0.0.1:{door}");
        let text = format!(
            "export KUBECONFIG={}\nexport PATH={}:$PATH\nexport OLLAMA_HOST={url} OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=none\n\
             # No Pod holds the replica, so `kubectl stowage chat` is told where it answers.\nexport STOWAGE_ADDRESS={url}\n",
            cluster.kubeconfig().display(),
            programs.display()
        );
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
        written.with_context(|| format!("writing {}", path.display()))?;
        Ok(Environment(path))
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A folder with kubectl and its plugin, and the agent for `stowage-agent plan`.
fn programs(cluster: &Cluster) -> Result<PathBuf> {
    let programs = cluster.folder().join("bin");
    let agent = program("stowage-agent")?;
    let kubectl = PathBuf::from(cluster.kubectl().get_program());
    let links = [("stowage-agent", agent.clone()), ("kubectl-stowage", agent), ("kubectl", kubectl)];
    std::fs::create_dir_all(&programs).with_context(|| format!("making {}", programs.display()))?;
    for (name, path) in links.into_iter().filter(|(_, path)| path.is_absolute()) {
        std::os::unix::fs::symlink(&path, programs.join(name)).with_context(|| format!("linking {name} to {}", path.display()))?;
    }
    Ok(programs)
}
