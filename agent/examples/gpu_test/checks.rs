//! What is tried, in its order.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use stowage_agent::model_header::{self, Data};
use stowage_agent::worker::Confine;
use stowage_engine::measure::Effort;
use stowage_engine::synthetic::Weights;
use stowage_placement::layout::Backend;
use stowage_placement::{
    Asked, Bytes, Decision, Defaults, Device, DevicePlan, KvCacheType, ModelSummary, NodeDevices, PlacementPolicy, Reason, Tokens, decide,
};

use crate::child::{self, Done, Order};
use crate::meter::Tried;
use crate::report::Report;
use crate::shapes::{self, Model};

/// From the reference, in nats.
const DIVERGENCE: f64 = 0.006;
/// By which a prediction may be off: the larger of both.
const OFF_SHARE: f64 = 0.01;
const OFF_BYTES: Bytes = Bytes::mib(64);
/// Of a copy's bytes a second, what decoding must read; and of tensor cores' operations, what prefill must do. On cards of this class and later ones.
const DECODE_SHARE: f64 = 0.45;
const PREFILL_SHARE: f64 = 0.40;
const JUDGED: [&str; 6] = ["H100", "H200", "GH200", "B100", "B200", "B300"];
/// Tokens of the prompt whose prefill is timed, and that are generated.
const PROMPT: u32 = 4096;
const GENERATED: u32 = 64;

pub struct Trial {
    gpu: Tried,
    folder: PathBuf,
    /// What the driver takes in each process, once it was measured.
    overhead: Bytes,
    pub report: Report,
}

/// What a plan is asked for.
#[derive(Clone, Copy)]
struct Wish {
    num_ctx: u64,
    cache: KvCacheType,
    num_gpu: i64,
    offered: Bytes,
}

impl Trial {
    pub fn new(gpu: Tried, folder: PathBuf, report: Report) -> Trial {
        Trial { gpu, folder, overhead: Defaults::default().overhead_bytes, report }
    }

    /// All of it; what fails keeps nothing that follows from being tried.
    pub fn run(&mut self) {
        self.report.line(&format!("# CUDA on {}", self.gpu.name));
        if self.gpu.is_emulated() {
            self.report.line(
                "\n**Emulated**: kernels ran on the CPU, with small models. This shows that the test itself works, and nothing of a GPU.",
            );
        }
        self.report.line("\nOne GPU. Models are synthesised: random weights in the shapes and quantisation of published ones. Not tried: several GPUs, MIG, unified memory.");
        self.part("Calibration", Trial::calibrate);
        self.part("Confinement", Trial::confine);
        self.part("Divergence from the reference", Trial::compare);
        let [one, eight, thirty_two] = match self.gpu.is_emulated() {
            true => [shapes::tiny("1B", 1), shapes::tiny("8B", 2), shapes::tiny("32B", 3)],
            false => [shapes::one(), shapes::eight(), shapes::thirty_two()],
        };
        self.part("Predicted and measured bytes: 1B", |trial| trial.bytes(&one));
        self.part("Predicted and measured bytes: 8B", |trial| trial.bytes(&eight));
        self.part("The largest context: 8B", |trial| trial.largest(&eight));
        self.part("More than is free: 8B", |trial| trial.beyond(&eight));
        self.part("Speed: 8B", |trial| trial.speed(&eight));
        for model in [one, eight] {
            // Left behind, it is removed at the end.
            let _ = std::fs::remove_file(self.folder.join(format!("{}.gguf", model.name)));
        }
        self.part("Predicted and measured bytes: 32B", |trial| trial.bytes(&thirty_two));
        self.part("More context than fits: 32B", |trial| trial.too_much(&thirty_two));
    }

    fn part(&mut self, title: &str, try_it: impl FnOnce(&mut Trial) -> anyhow::Result<()>) {
        self.report.section(title);
        if let Err(error) = try_it(self) {
            self.report.failed(title, &error);
        }
    }

    fn calibrate(&mut self) -> anyhow::Result<()> {
        let before = self.gpu.free();
        let done = self.start(&self.calibration(Confine::Off))?;
        let allocated = done.found.allocated;
        match self.gpu.held(done.pid, before) {
            Some((held, by)) => {
                self.overhead = held.saturating_sub(allocated);
                let text = "A process that has run every kernel holds";
                self.report.line(&format!(
                    "{text} {held} ({by} bytes by NVML), {allocated} of it allocated: {} is overhead. It took {:.1} s.",
                    self.overhead, done.seconds
                ));
            }
            None if self.gpu.is_emulated() => {
                self.overhead = Bytes::ZERO;
                self.report.line(&format!(
                    "Every kernel ran, in {:.1} s, with {allocated} allocated. There is no NVML to measure by.",
                    done.seconds
                ));
            }
            None => return Err(anyhow!("NVML does not say what is free, nor what the process holds")),
        }
        Ok(())
    }

    fn calibration(&self, confine: Confine) -> Order {
        Order::Calibrate { uuid: self.gpu.uuid.clone(), folder: self.folder.clone(), confine: confine.as_str().to_owned() }
    }

    /// What a worker is kept from, the driver must do without.
    fn confine(&mut self) -> anyhow::Result<()> {
        self.start(&self.calibration(Confine::Required))?;
        self.report.check("every kernel runs in a process that is confined as a worker is (Landlock, seccomp)", true);
        Ok(())
    }

    /// Whole, and with a part of the layers on the CPU.
    fn compare(&mut self) -> anyhow::Result<()> {
        let (model, tokens) = (shapes::compared(self.gpu.is_emulated()), if self.gpu.is_emulated() { 64 } else { 1024 });
        let path = model.write(&self.folder, Weights::Random)?;
        for (how, num_gpu) in [("whole", i64::from(u32::MAX)), ("split", i64::from(model.shape.blocks / 2))] {
            let wish = Wish { num_gpu, num_ctx: 512, cache: KvCacheType::F16, offered: Bytes(u64::MAX / 4) };
            let decision = self.decide(&path, wish)?;
            let (plan, request) = (decision.report.plan, decision.report.request);
            let processor = plan.processor.clone();
            let found = self.start(&Order::Compare { model: path.clone(), plan, request, tokens })?.found;
            let text = format!("{how} ({processor}), over {tokens} tokens: KL {:.6} nats, at most {DIVERGENCE}", found.divergence);
            self.report.check(&text, found.divergence <= DIVERGENCE);
        }
        Ok(())
    }

    fn bytes(&mut self, model: &Model) -> anyhow::Result<()> {
        let path = model.write(&self.folder, Weights::Repeated)?;
        self.report.table(&["num_ctx", "predicted", "measured", "difference", "by"]);
        let contexts: &[u64] = if self.gpu.is_emulated() { &[256, 2048] } else { &[2048, 8192, 32_768, 131_072] };
        let mut wrong = Vec::new();
        for &num_ctx in contexts {
            let offered = self.offered(Bytes::gib(8))?;
            let decision = self.decide(&path, Wish { num_ctx, cache: KvCacheType::F16, num_gpu: -1, offered })?;
            if !decision.report.fit.fits {
                self.report.row(&[num_ctx.to_string(), "does not fit".into(), String::new(), String::new(), String::new()]);
                continue;
            }
            let predicted = self.predicted(&decision.report.plan)?;
            let before = self.gpu.free();
            let done = self.load(&path, decision, [64.min(num_ctx as u32 / 2), 0, 4])?;
            let (measured, by) = self.gpu.held(done.pid, before).unwrap_or((done.found.allocated, "the engine's own count"));
            let off = measured.0 as i128 - predicted.0 as i128;
            let difference = format!("{:+.1} MiB ({:+.2} %)", off as f64 / f64::from(1 << 20), off as f64 * 100.0 / predicted.0 as f64);
            self.report.row(&[num_ctx.to_string(), predicted.to_string(), measured.to_string(), difference, by.into()]);
            if off.unsigned_abs() as f64 > (predicted.0 as f64 * OFF_SHARE).max(OFF_BYTES.0 as f64) {
                wrong.push(num_ctx.to_string());
            }
        }
        self.report.line("");
        let text = format!("{}: within the larger of 1 % and {OFF_BYTES} at every num_ctx that fits", model.name);
        self.report.check(&if wrong.is_empty() { text } else { format!("{text}; not at {}", wrong.join(", ")) }, wrong.is_empty());
        Ok(())
    }

    /// With less of the GPU free, so that a context fills it.
    fn largest(&mut self, model: &Model) -> anyhow::Result<()> {
        let path = model.write(&self.folder, Weights::Repeated)?;
        let base = if self.gpu.is_emulated() { 1024 } else { 16_384 };
        let (_ballast, offered) = self.with_room_for(&path, base)?;
        let wish = |num_ctx| Wish { num_ctx, cache: KvCacheType::F16, num_gpu: -1, offered };
        let largest = self.decide(&path, wish(base))?.report.fit.max_num_ctx_on_gpu.0;
        let decision = self.decide(&path, wish(largest))?;
        self.report.check(&format!("the largest context, {largest}, is 100% GPU with {offered} offered"), decision.report.fit.fits);
        let done = self.load(&path, decision, [largest as u32 - 1, 0, 1]);
        let text = format!("it loads there and survives a prompt of {} tokens", largest - 1);
        self.report.check(&text, done.as_ref().is_ok_and(|done| done.found.generated > 0.0));
        drop(done?);
        let more = (largest * 102).div_ceil(100).next_multiple_of(256);
        let refused = self.asked(&path, wish(more), PlacementPolicy::RequireGPU)?;
        let why = refused.verdict.as_ref().err().map(|refusal| format!("{}: {}", refusal.reason, refusal.message));
        let is_short = refused.verdict.as_ref().is_err_and(|refusal| refusal.reason == Reason::InsufficientVRAM);
        let text = format!("{more}, 2 % more, is refused before anything is allocated ({})", why.as_deref().unwrap_or("it is not"));
        self.report.check(&text, is_short);
        Ok(())
    }

    /// A plan made for more than there is: its load fails with numbers, keeps nothing, and a replica that is loaded computes on.
    fn beyond(&mut self, model: &Model) -> anyhow::Result<()> {
        let path = model.write(&self.folder, Weights::Repeated)?;
        let base = if self.gpu.is_emulated() { 1024 } else { 16_384 };
        let (_ballast, room) = self.with_room_for(&path, base)?;
        let whole = self.gpu.uuid.clone();
        if self.gpu.is_emulated() {
            self.gpu.uuid = format!("{whole}@{}", room.0);
        }
        let wish = |num_ctx, offered| Wish { num_ctx, cache: KvCacheType::F16, num_gpu: i64::from(u32::MAX), offered };
        let more = self.decide(&path, wish(4 * base, Bytes(u64::MAX / 4)))?;
        let wanted = self.predicted(&more.report.plan)?;
        let error = self.load(&path, more, [0, 0, 1]).err().map(|error| error.to_string());
        let text = format!("a plan of {wanted}, where {room} are free, fails ({})", error.as_deref().unwrap_or("it does not"));
        let told = |error: &String| error.starts_with(&Reason::DeviceChanged.to_string());
        self.report.check(&text, error.as_ref().is_some_and(told));
        let fits = self.decide(&path, wish(base, Bytes(u64::MAX / 4)))?;
        let loaded = self.load(&path, fits, [256, 0, 1]);
        self.report.check("and what was free before has a replica of its size loaded and computing", loaded.is_ok());
        drop(loaded);
        self.gpu.uuid = whole;
        Ok(())
    }

    /// A context that fits; one that does not; and that one with a smaller cache.
    fn too_much(&mut self, model: &Model) -> anyhow::Result<()> {
        let path = model.write(&self.folder, Weights::Repeated)?;
        let base = if self.gpu.is_emulated() { 1024 } else { 8192 };
        let (_ballast, offered) = self.with_room_for(&path, base)?;
        let wish = |num_ctx, cache| Wish { num_ctx, cache, num_gpu: -1, offered };
        let fits = self.decide(&path, wish(base, KvCacheType::F16))?;
        let more = (fits.report.fit.max_num_ctx_on_gpu.0 * 3 / 2).next_multiple_of(256);
        let less = self.decide(&path, wish(more, KvCacheType::F16))?;
        let again = self.decide(&path, wish(more, KvCacheType::Q8_0))?;
        let fit = &less.report.fit;
        let text = format!("{more} with a cache in f16 is {}: {}", less.report.plan.processor, fit.message);
        let tells = !fit.fits && fit.shortfall_bytes > Bytes::ZERO && less.report.plan.processor != "100% GPU";
        self.report.check(&text, tells);
        for (num_ctx, decision) in [(base, fits), (more, again)] {
            let Wish { cache, .. } = wish(num_ctx, decision.report.request.kv_cache_type);
            let whole = decision.report.plan.processor == "100% GPU" && decision.report.fit.fits;
            self.report.check(&format!("{num_ctx} with a cache in {cache} is {}", decision.report.plan.processor), whole);
            let loaded = self.load(&path, decision, [256, 0, 1]);
            self.report.check("and loads and computes there", loaded.is_ok());
            drop(loaded?);
        }
        Ok(())
    }

    fn speed(&mut self, model: &Model) -> anyhow::Result<()> {
        let path = model.write(&self.folder, Weights::Repeated)?;
        let emulated = self.gpu.is_emulated();
        let effort = if emulated {
            Effort { bytes: Bytes::mib(16), blocks: 4, rounds: 2 }
        } else {
            Effort { bytes: Bytes::gib(1), blocks: 4096, rounds: 4096 }
        };
        let device = self.start(&Order::Measure { uuid: self.gpu.uuid.clone(), effort })?.found.speed.context("it was measured")?;
        let (copied, multiplied) = (device.copied / 1e9, device.multiplied / 1e12);
        self.report.line(&format!("The device copies {copied:.0} GB/s, read and written together, and multiplies {multiplied:.1} TFLOP/s by `mma.sync` in half precision.\n"));
        let (prompt, generated) = if emulated { (64, 4) } else { (PROMPT, GENERATED) };
        let judged = !emulated && JUDGED.iter().any(|class| self.gpu.name.contains(class));
        for depth in [0, prompt] {
            let wish = Wish {
                num_ctx: u64::from(2 * prompt + generated),
                cache: KvCacheType::F16,
                num_gpu: -1,
                offered: self.offered(Bytes::gib(8))?,
            };
            let decision = self.decide(&path, wish)?;
            let timed = if depth == 0 { [0, prompt, generated] } else { [depth, 0, generated] };
            let found = self.load(&path, decision, timed)?.found;
            let read = model.read_for_a_token() + model.cache_of_a_token() * u64::from(depth + generated / 2);
            let rate = f64::from(generated) / found.generated;
            let share = rate * read as f64 / device.copied;
            let text = format!(
                "decode after {depth} tokens: {rate:.1} tokens/s, {:.0} GB/s of weights and cache, {:.1} % of a copy's",
                rate * read as f64 / 1e9,
                100.0 * share
            );
            self.judge(&text, share, DECODE_SHARE, judged);
            if depth == 0 {
                let operations = model.operations_of_a_token() * f64::from(prompt) / found.prompt;
                let (rate, share) = (f64::from(prompt) / found.prompt, operations / device.multiplied);
                let text = format!(
                    "prefill of {prompt} tokens: {rate:.0} tokens/s, {:.1} TFLOP/s, {:.1} % of tensor cores'",
                    operations / 1e12,
                    100.0 * share
                );
                self.judge(&text, share, PREFILL_SHARE, judged);
            }
        }
        self.report.line("\nNot compared with llama.cpp: no build of it with CUDA is in the folder.");
        Ok(())
    }

    fn start(&self, order: &Order) -> anyhow::Result<Done> {
        child::start(&self.gpu.uuid, order)
    }

    fn judge(&mut self, what: &str, share: f64, least: f64, judged: bool) {
        match judged {
            true => self.report.check(&format!("{what}, at least {:.0} %", 100.0 * least), share >= least),
            false => self.report.line(&format!("- not judged: {what}")),
        }
    }

    fn decide(&self, path: &Path, wish: Wish) -> anyhow::Result<Decision> {
        self.asked(path, wish, PlacementPolicy::PreferGPU)
    }

    fn asked(&self, path: &Path, wish: Wish, policy: PlacementPolicy) -> anyhow::Result<Decision> {
        let joined = model_header::read(path, Data::Needed).with_context(|| format!("reading {}", path.display()))?;
        let summary = ModelSummary::from_header(&joined.header, joined.size())?;
        let Wish { num_ctx, cache, num_gpu, offered } = wish;
        let asked = Asked { num_ctx: Some(Tokens(num_ctx)), kv_cache_type: cache, num_gpu, policy, ..Asked::default() };
        let gpu = Device { id: self.gpu.uuid.clone(), backend: Backend::Cuda, offered, overhead: self.overhead, ..Device::default() };
        decide(&summary, &asked, &NodeDevices::new(vec![gpu], Bytes(u64::MAX / 4)))
            .map_err(|refusal| anyhow!("{}: {}", refusal.reason, refusal.message))
    }

    fn predicted(&self, plan: &DevicePlan) -> anyhow::Result<Bytes> {
        let on_gpu = plan.devices.iter().find(|device| device.id == self.gpu.uuid);
        on_gpu.map(|device| device.total_bytes).context("the plan has the GPU")
    }

    fn load(&self, path: &Path, decision: Decision, [filled, prompt, generated]: [u32; 3]) -> anyhow::Result<Done> {
        let (plan, request) = (decision.report.plan, decision.report.request);
        self.start(&Order::Load { model: path.to_owned(), plan, request, filled, prompt, generated })
    }

    /// What the GPU offers now; of an emulated one, so much.
    fn offered(&mut self, emulated: Bytes) -> anyhow::Result<Bytes> {
        if self.gpu.is_emulated() {
            return Ok(emulated);
        }
        let free = self.gpu.free().context("NVML does not say what is free")?;
        Ok(free.saturating_sub(Defaults::default().margin(free)))
    }

    /// Has a process hold of the GPU what leaves room for this context and hardly more; and what is then offered.
    fn with_room_for(&mut self, path: &Path, num_ctx: u64) -> anyhow::Result<(Option<Done>, Bytes)> {
        let whole = Wish { num_ctx, cache: KvCacheType::F16, num_gpu: i64::from(u32::MAX), offered: Bytes(u64::MAX / 4) };
        let wanted = self.predicted(&self.decide(path, whole)?.report.plan)?;
        // What others of the GPU take meanwhile; an emulated one has no others, and 64 MiB are more than its models' longest context.
        let wanted = if self.gpu.is_emulated() { wanted } else { wanted.saturating_add(OFF_BYTES) };
        let offered = self.offered(wanted)?;
        let beyond = offered.saturating_sub(wanted).saturating_sub(self.overhead);
        if self.gpu.is_emulated() || beyond == Bytes::ZERO {
            return Ok((None, offered));
        }
        let ballast = self.start(&Order::Hold { uuid: self.gpu.uuid.clone(), bytes: Bytes(beyond.0 / 256 * 256) })?;
        Ok((Some(ballast), self.offered(wanted)?))
    }
}
