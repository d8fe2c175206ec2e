//! One function per command: it turns arguments into inputs, calls the library, and prints what belongs on stdout.

mod chat;
mod data;
mod doctor;
mod evaluate;
mod export;
mod fork;
mod generate;
mod plan;
mod prepare;
mod report;
mod resume;
mod sft;
mod why;

use crate::checkpoint::{self, Opened};
use crate::cli::{Cli, Color, Command, Device, Global, Pretrain};
use crate::config::{Config, print_config};
use crate::metrics::{self, Console};
use crate::model::Llama;
use crate::ops::device::{self, Wanted, choose};
use crate::runtime::error::{Exit, fail, failure_in, note};
use crate::runtime::files::{Access, io_hint, write_atomic};
use crate::runtime::format::escape_control;
use crate::runtime::memory;
use crate::tokenizer::Tokenizer;
use crate::train::schedule::{check_new_run, remark};
use crate::train::setup;
use crate::train::state::load_model;
use anyhow::Result;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Runs the command that was asked for.
///
/// # Errors
/// Those of the command; see [`Exit`].
pub fn run(cli: Cli) -> Result<()> {
    let global = &cli.global;
    ignore_file_size_signal();
    check_device(global)?;
    set_threads(global)?;
    let console = console(global);
    let done = dispatch(cli.command, console);
    let written = device::op_times().map(|(path, times)| write_atomic(&path, format!("{times:#}\n").as_bytes()));
    done?;
    written.unwrap_or(Ok(()))
}

fn dispatch(command: Command, console: Console) -> Result<()> {
    match command {
        Command::Pretrain(args) => pretrain(&args, console),
        Command::Resume(args) => resume::run(&args, console),
        Command::Sft(args) => sft::run(&args, console),
        Command::Eval(args) => evaluate::run(&args, console),
        Command::Sample(args) => generate::run(&args, console),
        Command::Data(command) => data::run(command, console),
        Command::Fork(args) => fork::run(&args, console),
        Command::Why(args) => why::run(&args, console),
        Command::Plan(args) => plan::run(&args, console),
        Command::Report(args) => report::run(&args, console),
        Command::Export(args) => export::run(&args, console),
        Command::Doctor => doctor::run(),
    }
}

fn pretrain(args: &Pretrain, console: Console) -> Result<()> {
    let config = match &args.init_from {
        Some(model) => config_for_model(args, model)?,
        None => Config::load(&args.config, &args.set)?,
    };
    if args.print_config {
        check_new_run(&config)?;
        let remark = remark(&config, 0)?.map_or_else(String::new, |remark| format!("# {}\n", remark.text));
        return print(&(print_config(&config) + &remark));
    }
    setup::pretrain(config, &args.run_dir(), args.init_from.as_deref(), console)
}

/// The configuration of a run that begins with the weights of `model`, and with its tokenizer unless another is named.
fn config_for_model(args: &Pretrain, model: &Path) -> Result<Config> {
    let has_tokenizer = |dir: &Path| dir.join("tokenizer.json").exists();
    // The checkpoints of a run have one tokenizer, so that any of them will do: their weights are verified later.
    let newest = || checkpoint::list_valid(model).ok()?.into_iter().next().map(|valid| valid.dir);
    let dir = if has_tokenizer(model) { model.to_owned() } else { newest().unwrap_or_else(|| model.to_owned()) };
    let dir = std::path::absolute(dir)?;
    let config = Config::load_for_model(&args.config, &args.set, &dir)?;
    if Path::new(config.data.tokenizer.as_str()) == dir && !has_tokenizer(&dir) {
        return Err(fail(Exit::Config, format!("{}: the model has no tokenizer.json", dir.display()))
            .hint("name its tokenizer: --set data.tokenizer=gpt2, or --set data.tokenizer=DIR/tokenizer.json")
            .into());
    }
    Ok(config)
}

/// Prints a failure and gives its exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let Some(exit) = exit_of(error) else { return ExitCode::SUCCESS };
    let failure = failure_in(error);
    let text = match failure {
        Some(f) if exit == Exit::Stopped => f.message.clone(),
        _ => format!("error: {error:#}"),
    };
    let io = error.chain().find_map(|e| e.downcast_ref::<std::io::Error>());
    let general = match exit {
        Exit::Internal => "this looks like a bug; please report it with the command and its output",
        Exit::Io => io.map_or("check the path and its permissions", |e| io_hint(e, Access::Read)),
        Exit::Memory => "end other programs, or use a machine with more memory",
        Exit::Data => "the file is damaged or not what it should be; use another",
        _ => "see llama-lite --help",
    };
    let hint = failure.and_then(|f| f.hint.as_deref()).unwrap_or(general);
    // Names and values from the files of strangers are quoted.
    note(&escape_control(&format!("{text}\nhint: {hint}")));
    ExitCode::from(exit as u8)
}

/// The class of a failure; none if it is only that whoever read our stdout has seen enough.
fn exit_of(error: &anyhow::Error) -> Option<Exit> {
    let io = error.chain().find_map(|e| e.downcast_ref::<std::io::Error>());
    if io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
        return None;
    }
    let unclassified = match io.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::OutOfMemory) => Exit::Memory,
        Some(_) => Exit::Io,
        None => Exit::Internal,
    };
    Some(failure_in(error).map_or(unclassified, |failure| failure.exit))
}

/// A model directory ready for use.
struct Loaded {
    source: Opened,
    tokenizer: Tokenizer,
    model: Llama,
}

/// The model of `ckpt`; adapters beside the model in `base`, if that is given.
fn load(ckpt: &Path, base: Option<&Path>) -> Result<Loaded> {
    let source = Opened::open_beside(ckpt, base)?;
    let tokenizer = Tokenizer::from_dir(source.tokenizer_dir())?;
    let (ids, rows) = (tokenizer.vocab_size(), source.model.vocab_size);
    if ids > rows {
        return Err(fail(
            Exit::Data,
            format!("{}: the tokenizer has {ids} ids, the model {rows}", source.dir.display()),
        )
        .hint("put the tokenizer.json that belongs to the model beside it")
        .into());
    }
    memory::check(source.model.n_params().saturating_mul(4), "this model in f32", "use a machine with more memory")?;
    let model = load_model(&source)?;
    Ok(Loaded { source, tokenizer, model })
}

/// Writes data to stdout.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn console(global: &Global) -> Console {
    let color = match global.color {
        Color::Auto => metrics::Color::Auto,
        Color::Always => metrics::Color::Always,
        Color::Never => metrics::Color::Never,
    };
    Console::stderr(global.quiet, color)
}

fn check_device(global: &Global) -> Result<()> {
    let wanted = match global.device {
        Device::Auto => Wanted::Auto,
        Device::Cpu => Wanted::Cpu,
        Device::Cuda(number) => Wanted::Gpu(number),
    };
    Ok(choose(wanted)?)
}

/// More threads than any machine has cores only cost memory and patience.
const MOST_THREADS: usize = 1024;

fn set_threads(global: &Global) -> Result<()> {
    let threads = global.threads.map_or(0, std::num::NonZeroUsize::get);
    if threads > MOST_THREADS {
        return Err(fail(Exit::Config, format!("--threads {threads} is more than {MOST_THREADS}"))
            .hint("one per core is the default")
            .into());
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| {
        fail(Exit::Io, format!("cannot start the threads that compute: {e}"))
            .hint("give fewer --threads, or raise the limits of processes and memory (`ulimit -u`, `ulimit -v`)")
    })?;
    Ok(())
}

/// A file beyond `ulimit -f` is then an error of the write, with a message and an exit code, not a silent death.
fn ignore_file_size_signal() {
    let caught = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Failing to install it changes nothing else.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, caught);
}

#[cfg(test)]
mod tests;
