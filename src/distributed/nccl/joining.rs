//! How NCCL gets to join the processes that a launcher has started, or MPI does in its place.

use super::abi::{Api, Communicator, UniqueId};
use super::{Control, Nccl, library};
use crate::distributed::Collective as _;
use crate::distributed::environment::Launched;
use crate::distributed::group::{Member, ProcessGroup};
use crate::distributed::launch::own_launch;
use crate::distributed::meeting::{self, Ending, Meeting};
use crate::distributed::mpi::{self, within};
use crate::ops::device;
use crate::ops::stream::Stream;
use crate::runtime::error::{Exit, Failure, alarm, fail, note};
use crate::runtime::machine;
use anyhow::Result;
use candle_core::Device;
use serde::{Deserialize, Serialize};
use signal_hook::low_level;
use std::sync::Arc;
use std::time::Duration;

/// How long a rank waits for the others to join.
const JOINING: Duration = Duration::from_secs(60);

/// What a rank tells before NCCL joins it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Card {
    /// That of no other GPU anywhere.
    name: String,
    /// Why there is no NCCL.
    missing: Option<String>,
}

/// Joins the ranks that a launcher has started, each on its `device`, a GPU.
///
/// # Errors
/// No NCCL library or one that is too old, ranks that do not come, two on one GPU; where MPI can stage, neither the first nor the last.
pub fn join(launched: &Launched, device: &Device) -> Result<ProcessGroup> {
    // srun speaks to MPI whether or not there is a library.
    if launched.has_mpi && (launched.meeting.is_none() || mpi::is_there()) {
        join_over_mpi(launched, device)
    } else {
        join_over_tcp(launched, device)
    }
}

fn join_over_mpi(launched: &Launched, device: &Device) -> Result<ProcessGroup> {
    let mpi = Arc::new(mpi::join(launched.ranks)?);
    let name = device::name(device);
    let group = ProcessGroup::new(Box::new(mpi.clone()), &name)?;
    let opened = library::open(&library::candidates());
    let missing = opened.as_ref().err().map(|failure| failure.message.clone());
    let card = Card { name: card_name(device), missing };
    let cards = group.gather("the GPUs", &card)?;
    let api = match (why_staged(&cards, group.members()), opened) {
        (None, Ok(api)) => api,
        (why, opened) => {
            let why = why.or(opened.err().map(|failure| failure.message)).unwrap_or_default();
            if group.is_first() {
                note(&format!(
                    "note: what GPUs exchange goes through the memory of the machine by MPI, which is slow: {why}"
                ));
            }
            return Ok(group);
        }
    };
    let id = group.on_first("NCCL's id", || Ok(api.unique_id()?.to_bytes()))?;
    let joined = communicator(&api, &id, group.rank(), group.ranks(), device);
    let joined = group.agree("NCCL", joined);
    if joined.is_err() {
        // All ranks know, and nothing ends the group in their place: it is not complete.
        mpi.leave();
    }
    let (communicator, stream) = joined?;
    let nccl = Nccl::new(communicator, stream, Control::Mpi(mpi), group.rank(), group.ranks());
    ProcessGroup::new(Box::new(nccl), &name)
}

/// Why NCCL cannot join the ranks.
fn why_staged(cards: &[Card], members: &[Member]) -> Option<String> {
    if let Some((rank, why)) = cards.iter().enumerate().find_map(|(rank, card)| Some((rank, card.missing.as_ref()?))) {
        return Some(format!("rank {rank}: {why}"));
    }
    let shared = cards.iter().enumerate().find_map(|(rank, card)| {
        let same = cards[..rank].iter().position(|other| !card.name.is_empty() && other.name == card.name)?;
        Some((same, rank))
    });
    shared.map(|(one, other)| format!("{} and {} compute on the same GPU", members[one], members[other]))
}

fn join_over_tcp(launched: &Launched, device: &Device) -> Result<ProcessGroup> {
    let api = library::open(&library::candidates())?;
    let meeting = meeting_of(launched, device)?;
    let (id, link) = meeting::meet(&meeting, || Ok(api.unique_id()?.to_bytes()))?;
    link.watch(end_process)?;
    let (communicator, stream) = communicator(&api, &id, meeting.rank, meeting.ranks, device)?;
    let nccl = Nccl::new(communicator, stream, Control::Link(link), meeting.rank, meeting.ranks);
    ProcessGroup::new(Box::new(nccl), &device::name(device))
}

/// Where the ranks of `launched` meet: at the port after that of their launcher, where its own server may listen.
fn meeting_of(launched: &Launched, device: &Device) -> Result<Meeting, Failure> {
    let Some(((host, port), ranks)) = launched.meeting.clone().zip(launched.ranks) else {
        let what = format!("{}, and they do not know where to meet", launched.describe());
        return Err(
            fail(Exit::Config, what).hint("set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port")
        );
    };
    let rank = launched.rank;
    let member = Member { rank, host: machine::host(), pid: std::process::id(), device: device::name(device) };
    // Of a run that its launcher starts again, no straggler may join.
    let variables =
        ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"];
    let run = variables.map(|name| std::env::var(name).unwrap_or_default()).join("/");
    Ok(Meeting {
        host,
        port: port.checked_add(1).unwrap_or(port - 1),
        rank,
        ranks,
        run: format!("{run}/{}", own_launch()),
        name: member.to_string(),
        gpu: card_name(device),
        limit: JOINING,
    })
}

/// What tells the GPU of this process from all others.
fn card_name(device: &Device) -> String {
    let name = device::unique_name(device);
    // Pretended ones have no numbers of their own over hosts.
    if name.is_empty() { name } else { format!("{name} of {}", machine::host()) }
}

fn communicator(api: &Api, id: &[u8], rank: usize, ranks: usize, device: &Device) -> Result<(Communicator, Stream)> {
    let stream = Stream::on(device)?;
    // The GPU of this thread is the one that NCCL takes.
    stream.handle()?;
    let id = UniqueId::from_bytes(id)?;
    let missing = "NCCL has not joined all ranks; one of them may have ended before";
    let joined = within(JOINING, missing, || api.join(id, rank, ranks));
    let communicator = joined.map_err(|error| match error.to_string() {
        text if text.contains("Duplicate GPU") => {
            meeting::shared_gpu(&format!("rank {rank}"), "another rank", ranks).into()
        }
        _ => error.context(format!("NCCL {}", api.version())),
    })?;
    Ok((communicator, stream))
}

/// Ends this process because of another one. It may be in the middle of anything, for as long as that takes.
fn end_process(ending: Ending) {
    match ending {
        Ending::Lost(rank) => {
            alarm(&format!(
                "error: rank {rank} is gone\nhint: look at its output; what was saved is whole and can be resumed"
            ));
            low_level::exit(Exit::Internal as i32)
        }
        // Rank 0 has said so.
        Ending::Told(_) => low_level::exit(Exit::Internal as i32),
        Ending::Asked(code) => {
            note(&format!("error: another rank has ended all with exit code {code}\nhint: look at its output"));
            low_level::exit(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_without_a_gpu_or_a_library_of_their_own_go_through_mpi() {
        let card = |name: &str, missing: Option<&str>| Card { name: name.into(), missing: missing.map(str::to_owned) };
        let member = |rank| Member { rank, host: "a".into(), pid: 7, device: "cuda:0".into() };
        let members = [member(0), member(1)];
        assert_eq!(why_staged(&[card("x", None), card("y", None)], &members), None);
        // A driver that gives no names is believed.
        assert_eq!(why_staged(&[card("", None), card("", None)], &members), None);
        let shared = why_staged(&[card("x", None), card("x", None)], &members).unwrap();
        assert!(shared.contains("rank 0 (host a") && shared.contains("rank 1 (host a"), "{shared}");
        let missing = why_staged(&[card("x", None), card("y", Some("no NCCL"))], &members).unwrap();
        assert_eq!(missing, "rank 1: no NCCL");
    }
}
