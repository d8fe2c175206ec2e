//! The command line: the commands, the global flags, and what is set up before any command runs.
//!
//! The arguments of a command stand beside its code in `commands/`. Wrong usage is clap's own error with exit code 2; keys and values
//! of `--set` are left to the configuration, which reports all its problems at once.

use crate::commands::data::{self, DataCommand};
use crate::commands::doctor;
use crate::commands::eval::{self, EvalArgs};
use crate::commands::export::{self, ExportArgs};
use crate::commands::fork::{self, ForkArgs};
use crate::commands::plan::{self, PlanArgs};
use crate::commands::pretrain::{self, PretrainArgs};
use crate::commands::ranks::{self, Ranks, Role};
use crate::commands::report::{self, ReportArgs};
use crate::commands::resume::{self, ResumeArgs};
use crate::commands::sample::{self, SampleArgs};
use crate::commands::sft::{self, SftArgs};
use crate::commands::why::{self, WhyArgs};
use crate::config::silence_renamed_keys;
use crate::distributed::environment;
use crate::distributed::launch::supervisor;
use crate::metrics::{Color, Console};
use crate::ops::device::{self, DeviceChoice};
use crate::ops::simd;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::shell::quoted;
use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::num::NonZeroUsize;

/// Pretrain, resume, evaluate and sample LLaMA models.
#[derive(Debug, Parser)]
#[command(name = "llama-lite", version = crate::VERSION, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = "Example: llama-lite pretrain --config configs/quickstart.toml")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// The flags that every command takes.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Where to compute: auto (a GPU if this build can use one), cpu, cuda or cuda:N
    #[arg(long, global = true, help_heading = "Global options", default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// CPU threads [default: one per core]; results are the same for any number
    #[arg(long, global = true, help_heading = "Global options", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Print only results and errors
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Colours in messages; auto heeds NO_COLOR and whether stderr is a terminal
    #[arg(long, global = true, help_heading = "Global options", default_value = "auto", value_name = "WHEN")]
    pub color: Color,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model from a configuration
    Pretrain(PretrainArgs),
    /// Resume an interrupted run exactly where it stopped
    Resume(ResumeArgs),
    /// Fine-tune a model on conversations
    Sft(SftArgs),
    /// Measure a model: its loss on text, benchmark tasks
    Eval(EvalArgs),
    /// Generate text
    Sample(SampleArgs),
    /// Make and check training data
    #[command(subcommand)]
    Data(DataCommand),
    /// Continue one checkpoint in several ways, each as a run of its own
    Fork(ForkArgs),
    /// Show which documents made up a step of a run, and the loss of the model on each
    Why(WhyArgs),
    /// Estimate what a run needs: parameters, memory, time, disk
    Plan(PlanArgs),
    /// Show a run, or several, as one page: curves, samples, events, differences
    Report(ReportArgs),
    /// Write a checkpoint as a Hugging Face model directory
    Export(ExportArgs),
    /// Show devices, features and a self-test of every operation
    #[command(after_help = "Example: llama-lite doctor --device cuda")]
    Doctor,
}

/// Runs a command.
///
/// # Errors
/// Those of the command; see [`Exit`].
pub fn run(cli: Cli) -> Result<()> {
    ignore_file_size_signal();
    if supervisor::is_wanted() {
        std::process::exit(supervisor::supervise()?);
    }
    supervisor::watch_own()?;
    let choice = cli.global.device;
    let console = Console::stderr(cli.global.quiet, cli.global.color);
    // Before a GPU is opened: the parent of ranks needs none.
    match ranks::role(environment::launched(), ranks_of(&cli.command), choice)? {
        Role::Alone => {
            device::choose(choice, 0)?;
            note_fallback(console);
            run_command(cli, console)
        }
        Role::Rank(launched) => {
            ranks::choose_device(choice, &launched)?;
            let threads = cli.global.threads.or_else(|| ranks::threads(&launched));
            ranks::join(&launched, device::used())?;
            let console = Console { quiet: console.quiet || !ranks::group().is_first(), ..console };
            note_fallback(console);
            let global = Global { threads, quiet: console.quiet, ..cli.global };
            ranks::end(|| run_command(Cli { global, ..cli }, console))
        }
        Role::Parent(number) => std::process::exit(ranks::start(number, choice, what_helps(&cli.command, number))?),
    }
}

/// Says why no GPU computes, where there seems to be one.
fn note_fallback(console: Console) {
    if let Some(why) = device::fallback().filter(|_| !console.quiet) {
        note(&format!("note: {why}"));
    }
}

/// What to do when one of `number` ranks has died.
fn what_helps(command: &Command, number: usize) -> String {
    let run = match command {
        Command::Pretrain(args) => args.run_dir(),
        Command::Resume(args) if args.verify.is_none() => args.ckpt.clone(),
        Command::Sft(args) => args.run_dir(),
        _ => return "run the command again".into(),
    };
    let resume = format!("llama-lite resume --ckpt {} --ranks {number}", quoted(&run));
    format!("what was saved is whole; if there is a checkpoint, resume from it: {resume}")
}

/// Which ranks the command can have.
fn ranks_of(command: &Command) -> Ranks {
    match command {
        Command::Pretrain(args) => Ranks::Several(args.ranks),
        Command::Resume(args) => Ranks::Several(args.ranks),
        Command::Sft(args) => Ranks::Several(args.ranks),
        Command::Eval(args) => Ranks::Several(args.ranks),
        Command::Sample(_) => Ranks::One("sample"),
        Command::Data(_) => Ranks::One("data"),
        Command::Fork(_) => Ranks::One("fork"),
        Command::Why(_) => Ranks::One("why"),
        Command::Plan(_) => Ranks::One("plan"),
        Command::Report(_) => Ranks::One("report"),
        Command::Export(_) => Ranks::One("export"),
        // It looks at the machine it runs on: on each of many hosts that is another one.
        Command::Doctor => Ranks::Any,
    }
}

fn run_command(cli: Cli, console: Console) -> Result<()> {
    check_simd()?;
    set_threads(cli.global.threads)?;
    if cli.global.quiet {
        silence_renamed_keys();
    }
    let result = dispatch(cli.command, console);
    // The times are written after a failure too, but the failure of the command is the one to report.
    let written = device::write_op_times();
    result?;
    written
}

fn check_simd() -> Result<()> {
    simd::permitted().map(drop).map_err(|value| {
        fail(Exit::Config, format!("{}={value}: no such instructions", simd::VARIABLE))
            .hint(format!("one of {}", simd::level_names()))
            .into()
    })
}

fn dispatch(command: Command, console: Console) -> Result<()> {
    match command {
        Command::Pretrain(args) => pretrain::run(&args, console),
        Command::Resume(args) => resume::run(&args, console),
        Command::Sft(args) => sft::run(&args, console),
        Command::Eval(args) => eval::run(&args, console),
        Command::Sample(args) => sample::run(&args, console),
        Command::Data(command) => data::run(command, console),
        Command::Fork(args) => fork::run(&args, console),
        Command::Why(args) => why::run(&args, console),
        Command::Plan(args) => plan::run(&args, console),
        Command::Report(args) => report::run(&args, console),
        Command::Export(args) => export::run(&args, console),
        Command::Doctor => doctor::run(),
    }
}

/// More threads than any machine has cores only cost memory and time.
const MAX_THREADS: usize = 1024;

/// Starts the threads that compute; one per core if no number is given.
fn set_threads(threads: Option<NonZeroUsize>) -> Result<()> {
    let threads = threads.map_or(0, NonZeroUsize::get);
    if threads > MAX_THREADS {
        return Err(fail(Exit::Config, format!("--threads {threads} is more than {MAX_THREADS}"))
            .hint("one per core is the default")
            .into());
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| {
        fail(Exit::Io, format!("cannot start the threads that compute: {e}"))
            .hint("give fewer --threads, or raise the limits of processes and memory (`ulimit -u`, `ulimit -v`)")
    })?;
    Ok(())
}

/// With the signal ignored, a write beyond `ulimit -f` is an error with a message and an exit code; without, it kills the process.
fn ignore_file_size_signal() {
    let caught = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Failing to install it changes nothing else.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, caught);
}
