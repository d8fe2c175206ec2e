//! What the variables of launchers say: how many processes were started, and which of them this one is.
//!
//! Launchers stand inside each other: torchrun in a step of Slurm, mpiexec in an allocation. All of their variables reach the process,
//! and the innermost launcher is the one that started it.

use crate::runtime::error::{Exit, Failure, fail};
use std::fmt;

/// Every variable that is read here. Whoever starts a process that is to be alone removes them.
pub const VARIABLES: [&str; 25] = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_ID",
    "PMI_RANK",
    "PMI_SIZE",
    "PMI_FD",
    "PMI_PORT",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMIX_RANK",
    "PMIX_NAMESPACE",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    Torchrun,
    Slurm,
    /// The mpiexec of MPICH and its relatives, and srun where it speaks their protocol.
    Hydra,
    OpenMpi,
    /// A launcher of which nothing is known but that it speaks PMIx.
    Pmix,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchrun => "torchrun (RANK, WORLD_SIZE)",
            Self::Slurm => "srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS)",
            Self::Hydra => "mpiexec (PMI_RANK, PMI_SIZE)",
            Self::OpenMpi => "Open MPI's mpiexec (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE)",
            Self::Pmix => "a launcher with PMIx (PMIX_RANK)",
        })
    }
}

/// One of the processes that a launcher has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    pub launcher: Launcher,
    pub rank: usize,
    /// None where only MPI itself knows.
    pub ranks: Option<usize>,
    /// Place among the processes on this host.
    pub local_rank: usize,
    /// Processes on this host; 1 where the launcher does not say.
    pub local_ranks: usize,
    /// Whether MPI can be joined: its launcher listens to this process.
    pub has_mpi: bool,
    /// Host and port where the ranks can meet without MPI.
    pub meeting: Option<(String, u16)>,
}

impl Launched {
    /// Whether there may be other processes.
    pub fn has_others(&self) -> bool {
        self.ranks != Some(1)
    }

    /// The launcher and its number, for messages.
    pub fn describe(&self) -> String {
        match self.ranks {
            Some(ranks) => format!("{} has started {ranks} ranks", self.launcher),
            None => format!("{} has started several ranks", self.launcher),
        }
    }

    /// Refuses a rank that its own launcher cannot mean, and a number of ranks that the tree of sums cannot have.
    ///
    /// # Errors
    /// [`Exit::Config`].
    pub fn check(&self) -> Result<(), Failure> {
        let Some(ranks) = self.ranks else { return Ok(()) };
        if self.rank >= ranks {
            return Err(fail(Exit::Config, format!("{}, and this is rank {}", self.describe(), self.rank))
                .hint("unset these variables, or start the program with the launcher that sets them"));
        }
        check_number(ranks, &self.describe())
    }
}

/// Refuses a number of ranks that is no power of two; `who` says where it comes from.
///
/// # Errors
/// [`Exit::Config`] with the two nearest numbers.
pub fn check_number(ranks: usize, who: &str) -> Result<(), Failure> {
    if ranks.is_power_of_two() {
        return Ok(());
    }
    let above = ranks.checked_next_power_of_two().unwrap_or(1);
    let hint = format!("use {} or {above} ranks", (above / 2).max(1));
    Err(fail(Exit::Config, format!("{who}: their number must be a power of two")).hint(hint))
}

/// What the variables of this process say.
pub fn launched() -> Option<Launched> {
    launched_by(|name| std::env::var(name).ok())
}

/// What the variables that `lookup` finds say; none if no launcher has started this process.
pub fn launched_by(lookup: impl Fn(&str) -> Option<String>) -> Option<Launched> {
    let variables = Variables(&lookup);
    let mpi = variables.mpi();
    // torchrun's own children have LOCAL_RANK. Without it, RANK and WORLD_SIZE may be those of a whole container, inside of which
    // mpiexec has started this process.
    let torchrun = variables.torchrun();
    let is_innermost = variables.number("LOCAL_RANK").is_some() || mpi.is_none();
    match (torchrun, mpi) {
        // A script that translates the variables of MPI into those of torchrun: both say the same, and MPI can be joined.
        (Some(torchrun), Some(mpi)) if (torchrun.rank, torchrun.ranks) == (mpi.rank, mpi.ranks) => {
            Some(Launched { meeting: torchrun.meeting, ..mpi })
        }
        (Some(torchrun), _) if is_innermost => Some(torchrun),
        (_, Some(mpi)) => Some(mpi),
        _ => variables.slurm(),
    }
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.text(name)?.parse().ok()
    }

    fn torchrun(&self) -> Option<Launched> {
        Some(Launched {
            launcher: Launcher::Torchrun,
            rank: self.number("RANK")?,
            ranks: Some(self.number("WORLD_SIZE")?),
            local_rank: self.number("LOCAL_RANK").unwrap_or(0),
            local_ranks: self.number("LOCAL_WORLD_SIZE").unwrap_or(1),
            has_mpi: false,
            meeting: self.master().zip(self.port()),
        })
    }

    fn mpi(&self) -> Option<Launched> {
        self.open_mpi().or_else(|| self.pmi()).or_else(|| self.pmix())
    }

    fn open_mpi(&self) -> Option<Launched> {
        let rank = self.number("OMPI_COMM_WORLD_RANK")?;
        let ranks = self.number("OMPI_COMM_WORLD_SIZE")?;
        let local_rank = self.number("OMPI_COMM_WORLD_LOCAL_RANK").unwrap_or(0);
        let local_ranks = self.number("OMPI_COMM_WORLD_LOCAL_SIZE").unwrap_or(1);
        Some(Launched { local_rank, local_ranks, ..with_mpi(Launcher::OpenMpi, rank, Some(ranks)) })
    }

    fn pmi(&self) -> Option<Launched> {
        let rank = self.number("PMI_RANK")?;
        let ranks = Some(self.number("PMI_SIZE")?);
        // srun speaks this protocol too, and says by its own variables who shares a host.
        let by_slurm = self.slurm().filter(|slurm| (slurm.rank, slurm.ranks) == (rank, ranks));
        let launched = by_slurm.unwrap_or_else(|| with_mpi(Launcher::Hydra, rank, ranks));
        let local_rank = self.number("MPI_LOCALRANKID").unwrap_or(launched.local_rank);
        let local_ranks = self.number("MPI_LOCALNRANKS").unwrap_or(launched.local_ranks);
        Some(Launched { local_rank, local_ranks, has_mpi: true, ..launched })
    }

    fn pmix(&self) -> Option<Launched> {
        let rank = self.number("PMIX_RANK")?;
        let by_slurm = self.slurm().filter(|slurm| slurm.rank == rank);
        let by_slurm = by_slurm.map(|slurm| Launched { has_mpi: true, ..slurm });
        Some(by_slurm.unwrap_or_else(|| with_mpi(Launcher::Pmix, rank, None)))
    }

    /// The step that this process belongs to. A batch script itself has SLURM_NTASKS, and is one process.
    fn slurm(&self) -> Option<Launched> {
        let rank = self.number("SLURM_PROCID")?;
        let ranks = self.number("SLURM_STEP_NUM_TASKS")?;
        let node = self.number("SLURM_NODEID").unwrap_or(0);
        let per_node = self.text("SLURM_STEP_TASKS_PER_NODE");
        let local_ranks = per_node.and_then(|per_node| tasks_of_node(&per_node, node)).unwrap_or(1);
        let host = self.master().or_else(|| first_host(&self.text("SLURM_STEP_NODELIST")?));
        // Two jobs that share a host must not meet each other.
        let port = self.port().unwrap_or(20_000 + (self.number("SLURM_JOB_ID").unwrap_or(0) % 10_000) as u16);
        Some(Launched {
            launcher: Launcher::Slurm,
            rank,
            ranks: Some(ranks),
            local_rank: self.number("SLURM_LOCALID").unwrap_or(0),
            local_ranks,
            has_mpi: false,
            meeting: host.map(|host| (host, port)),
        })
    }

    fn master(&self) -> Option<String> {
        self.text("MASTER_ADDR")
    }

    fn port(&self) -> Option<u16> {
        self.text("MASTER_PORT")?.parse().ok()
    }
}

/// A process that can join MPI, of whose host nothing is known.
fn with_mpi(launcher: Launcher, rank: usize, ranks: Option<usize>) -> Launched {
    Launched { launcher, rank, ranks, local_rank: 0, local_ranks: 1, has_mpi: true, meeting: None }
}

/// The tasks on the node number `node` by a list such as `4(x2),3`: two nodes with four tasks each, and one with three.
fn tasks_of_node(list: &str, mut node: usize) -> Option<usize> {
    for entry in list.split(',') {
        let (tasks, repeated) = match entry.split_once("(x") {
            Some((tasks, repeated)) => (tasks, repeated.strip_suffix(')')?.parse().ok()?),
            None => (entry, 1),
        };
        if node < repeated {
            return tasks.parse().ok();
        }
        node -= repeated;
    }
    None
}

/// The first host of a list such as `gpu[03-07,9],login1`.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list;
    loop {
        let end = rest.find([',', '[']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        let Some(range) = rest[end..].strip_prefix('[') else { break };
        let (numbers, behind) = range.split_once(']')?;
        host.push_str(numbers.split(['-', ',']).next()?);
        rest = behind;
    }
    Some(host).filter(|host| !host.is_empty())
}

#[cfg(test)]
mod tests;
