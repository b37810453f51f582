//! Everything up on one machine: a cluster, the operator, an agent, a ModelDeployment, an answer. Behind `make run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use stowage_control_plane::processes::wait_for;
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
    #[arg(long, default_value = "What is the capital of France?")]
    question: String,
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
            Ok(()) => ExitCode::SUCCESS,
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

async fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let step = |what: &str| eprintln!("[{:5.1} s] {what}", started.elapsed().as_secs_f64());
    step("starting the control plane and the operator");
    let mut cluster = Cluster::start(Settings { kubeconfig: kubeconfig(arguments.cluster)?, ..Settings::default() }).await?;
    step("starting the node's agent");
    let door = cluster.start_agent(agent(arguments)?).await?.door;
    step("kubectl apply -f examples/smollm2.yaml");
    let answer = match deploy_and_ask(&cluster, door, &arguments.question, &step).await {
        Ok(answer) => answer,
        Err(error) => bail!("{error:#}\n{}", cluster.logs()),
    };
    println!("> {}\n{answer}", arguments.question);
    if !arguments.once {
        serve_until_interrupted(&cluster, door).await;
    }
    cluster.stop();
    step("everything is ended");
    Ok(())
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
    let node = "this-machine".to_owned();
    let gpus = arguments.simulated_gpu.iter().map(|gib| SimulatedGpu::new(&node, 0, Bytes::gib(*gib))).collect();
    let model_directory = model.parent().context("a file is in a folder")?.to_owned();
    Ok(AgentOptions { node, model_directory, gpus, flags: Vec::new() })
}

async fn deploy_and_ask(cluster: &Cluster, door: u16, question: &str, step: &impl Fn(&str)) -> Result<String> {
    cluster.apply(MANIFEST)?;
    watch::model_deployment(&cluster.client, "default", NAME, watch::is_ready).await?;
    step("it is ready: kubectl get modeldeployments");
    print!("{}", cluster.kubectl_output(&["get", "modeldeployments", NAME])?);
    step("asking it through the OpenAI API");
    ask(door, question).await
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

async fn serve_until_interrupted(cluster: &Cluster, door: u16) {
    println!(
        "\nIt serves until Ctrl-C. Try, from another terminal:\n  export KUBECONFIG={}\n  kubectl get modeldeployments -o wide\n  \
         curl http://127.0.0.1:{door}/api/chat -d '{{\"model\": \"{NAME}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'",
        cluster.kubeconfig().display()
    );
    std::future::pending::<()>().await;
}
