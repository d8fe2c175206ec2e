//! The processes that a command is: alone, one of the ranks that a launcher has started, or the parent that starts them itself.

use super::exit_of;
use crate::distributed::environment::{Launched, check_number};
use crate::distributed::group::ProcessGroup;
use crate::distributed::launch::{Launch, Starter, launch};
use crate::distributed::{mpi, nccl};
use crate::ops::device::{self, DeviceChoice};
use crate::runtime::error::{Exit, Failure, fail, failure_in, silence_notes};
use crate::runtime::machine;
use anyhow::Result;
use candle_core::Device;
use clap::Args;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// For commands that several processes can do together.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RanksArgs {
    /// Processes that share the work, a power of two, or auto: as many as there are GPUs for; 1 on a CPU
    #[arg(long, value_name = "N")]
    pub ranks: Option<RanksChoice>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RanksChoice {
    /// As many as there are GPUs; one on a CPU.
    Auto,
    Number(NonZeroUsize),
}

impl FromStr for RanksChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Number).map_err(|_| "expected a number of at least 1, or auto".into()),
        }
    }
}

impl RanksArgs {
    /// The number that is asked for, for ranks on GPUs or on CPUs; 1 if none is.
    ///
    /// # Errors
    /// [`Exit::Config`] if it is no power of two.
    pub(crate) fn number(self, on_gpu: bool) -> Result<usize, Failure> {
        let number = match self.ranks {
            // Of three GPUs, two can share the work.
            Some(RanksChoice::Auto) if on_gpu => 1 << device::count_gpus().max(1).ilog2(),
            None | Some(RanksChoice::Auto) => 1,
            Some(RanksChoice::Number(number)) => number.get(),
        };
        check_number(number, &format!("--ranks {number}"))?;
        Ok(number)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Alone,
    /// One of several, of which this one is to join the others.
    Rank(Launched),
    /// The parent of so many ranks.
    Parent(usize),
}

/// What a command says of ranks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ranks {
    /// It can have several, and its flag asks for these.
    Several(RanksArgs),
    /// It is one process, wherever it is started.
    One(&'static str),
    /// It may be started many times beside each other.
    Any,
}

/// What this process is to be: `launched` by a launcher, for a command of the kind `ranks`, where `--device` asks for `choice`.
///
/// # Errors
/// [`Exit::Config`] for ranks that the command or this build cannot have, and for numbers that contradict each other.
pub(crate) fn role(launched: Option<Launched>, ranks: Ranks, choice: DeviceChoice) -> Result<Role, Failure> {
    // What is refused here is refused on every rank.
    if launched.as_ref().is_some_and(|launched| launched.rank > 0 && launched.ranks.is_none_or(|n| launched.rank < n)) {
        set_voice(Voice::Silent);
    }
    let args = match ranks {
        Ranks::Several(args) => args,
        Ranks::One(command) => return refuse_others(launched, command),
        Ranks::Any => return Ok(Role::Alone),
    };
    let on_gpu = choice.means_gpu();
    let number = args.number(on_gpu)?;
    match launched {
        Some(launched) if launched.has_others() || (launched.has_mpi && number > 1) => {
            launched.check()?;
            check_asked(&launched, args)?;
            check_engine(&launched, on_gpu)?;
            Ok(Role::Rank(launched))
        }
        // A launcher that has started one process is no reason against more of our own.
        _ if number == 1 => Ok(Role::Alone),
        _ => {
            if on_gpu {
                check_gpus(number, choice)?;
            }
            Ok(Role::Parent(number))
        }
    }
}

fn refuse_others(launched: Option<Launched>, command: &str) -> Result<Role, Failure> {
    match launched.filter(Launched::has_others) {
        None => Ok(Role::Alone),
        Some(launched) => Err(fail(Exit::Config, format!("{}, but `{command}` is one process", launched.describe()))
            .hint("start this command without the launcher, or unset the variables that it has left behind")),
    }
}

/// Refuses a flag that names another number than the launcher has started.
fn check_asked(launched: &Launched, args: RanksArgs) -> Result<(), Failure> {
    match (args.ranks, launched.ranks) {
        (Some(RanksChoice::Number(asked)), Some(ranks)) if asked.get() != ranks => {
            Err(fail(Exit::Config, format!("{}, but --ranks asks for {asked}", launched.describe()))
                .hint("leave --ranks out under a launcher, or leave the launcher out"))
        }
        _ => Ok(()),
    }
}

/// Refuses ranks that no engine can join.
fn check_engine(launched: &Launched, on_gpu: bool) -> Result<(), Failure> {
    if on_gpu || launched.has_mpi {
        return Ok(());
    }
    let number = launched.ranks.map_or_else(|| "N".to_owned(), |ranks| ranks.to_string());
    Err(fail(Exit::Config, format!("{}, but ranks on CPUs need an MPI launcher", launched.describe()))
        .hint(format!("use --ranks {number}, mpiexec -n {number} or srun --mpi=pmix, after: pip install mpich")))
}

/// Refuses more ranks than there are GPUs: NCCL wants one for each.
fn check_gpus(number: usize, choice: DeviceChoice) -> Result<(), Failure> {
    let gpus = device::count_gpus();
    if let DeviceChoice::Gpu(one) = choice {
        return Err(fail(
            Exit::Config,
            format!("--ranks {number} needs {number} GPUs, and --device cuda:{one} is one"),
        )
        .hint("use --device cuda, which gives each rank a GPU of its own"));
    }
    if gpus == 0 {
        // It says why there is none.
        return device::choose(choice, 0);
    }
    if number <= gpus {
        return Ok(());
    }
    let most = 1 << gpus.ilog2();
    Err(fail(Exit::Config, format!("--ranks {number} needs {number} GPUs, and there are {gpus}"))
        .hint(format!("use --ranks {most}; or share GPUs over MPI, which is slow: mpiexec -n {number}")))
}

/// Chooses the device of one of the ranks that `launched` describes: on GPUs each takes its own.
///
/// # Errors
/// Those of [`device::choose`].
pub(crate) fn choose_device(choice: DeviceChoice, launched: &Launched) -> Result<(), Failure> {
    // Without MPI no rank can do with a CPU.
    let must_be_gpu = choice == DeviceChoice::Auto && !launched.has_mpi;
    device::choose(if must_be_gpu { DeviceChoice::Cuda } else { choice }, launched.local_rank)
}

/// The processes that this one works with, while a command runs.
static GROUP: Mutex<Option<ProcessGroup>> = Mutex::new(None);

/// Whether and how this process reports a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// For all that take part.
    ForAll,
    /// For itself, as the rank of this number: the others may have failed otherwise, or not at all.
    AsRank(usize),
    /// Not at all: rank 0 reports the same.
    Silent,
}

static VOICE: Mutex<Voice> = Mutex::new(Voice::ForAll);

pub(crate) fn voice() -> Voice {
    *VOICE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_voice(voice: Voice) {
    *VOICE.lock().unwrap_or_else(PoisonError::into_inner) = voice;
}

/// Joins the other ranks; from then on [`group`] is all of them.
///
/// # Errors
/// [`Exit::Config`] without a library; those of the engine.
pub(crate) fn join(launched: &Launched, device: &Device) -> Result<()> {
    set_voice(Voice::AsRank(launched.rank));
    let group = match device {
        Device::Cpu => ProcessGroup::new(Box::new(mpi::join(launched.ranks)?), "cpu")?,
        gpu => nccl::join(launched, gpu)?,
    };
    if group.is_first() {
        set_voice(Voice::ForAll);
    } else {
        set_voice(Voice::Silent);
        silence_notes();
    }
    *GROUP.lock().unwrap_or_else(PoisonError::into_inner) = Some(group);
    Ok(())
}

/// The processes that this one works with; it alone if it has joined no others.
pub(crate) fn group() -> ProcessGroup {
    GROUP.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
}

/// Does the work of a command on this rank, and ends it on all ranks with the first failure of any. A panic is a failure, too: the
/// others must not wait for this rank.
///
/// # Errors
/// That failure.
pub(crate) fn end(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked().into()));
    let result = match result {
        // The others are to end with the class that this rank knows its error by, or not at all with one that is none.
        Err(error) if failure_in(&error).is_none() => match exit_of(&error) {
            Some(exit) => Err(fail(exit, format!("{error:#}")).into()),
            None => Ok(()),
        },
        result => result,
    };
    let group = GROUP.lock().unwrap_or_else(PoisonError::into_inner).take();
    group.unwrap_or_default().end(result)
}

/// The failure that a panic is: its message is on stderr already.
pub fn panicked() -> Failure {
    fail(Exit::Internal, "a panic").hint("this is a bug; please report it with the command and its output")
}

/// Starts `number` ranks and waits for them; returns their exit code. `hint` is what helps when one has died.
///
/// # Errors
/// [`Exit::Config`] where there is nothing to start them with; the failure of the rank that has failed first.
pub(crate) fn start(number: usize, choice: DeviceChoice, hint: String) -> Result<i32> {
    let stdout = std::io::stdout();
    let stdout_is_terminal = stdout.is_terminal();
    let starter = if choice.means_gpu() { Starter::Program } else { Starter::Mpiexec(None) };
    launch(Launch { ranks: number, starter, stdout: Box::new(stdout), stdout_is_terminal, hint })
}

/// Threads for a rank that shares its host with others, where the user has not said how many.
pub(crate) fn threads(launched: &Launched) -> Option<NonZeroUsize> {
    let available = std::thread::available_parallelism().ok()?.get();
    // A launcher that binds ranks to processors of their own has shared them out already.
    let own = machine::processors("self");
    let all = machine::processors(&machine::parent().to_string());
    let sharing = match own.zip(all) {
        Some((own, all)) if own < all => (launched.local_ranks * own).div_ceil(all),
        _ => launched.local_ranks,
    };
    NonZeroUsize::new((available / sharing.max(1)).max(1))
}
