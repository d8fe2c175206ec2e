//! How a launch has ended, from how its ranks have.

use super::protocol::Outcome;
use crate::runtime::error::Exit;
use signal_hook::consts::SIGUSR1;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// The end of one rank, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RankEnd {
    /// None if it has not started.
    pub pid: Option<u32>,
    /// None if its supervisor has ended without a word.
    pub outcome: Option<Outcome>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The exit code of all; what there was to report, rank 0 has reported.
    Agreed(i32),
    /// One rank has failed, if it is known which; the others were ended.
    Failed { exit: Exit, message: String, rank: Option<usize> },
    /// No rank has started; what mpiexec did instead.
    NotStarted(String),
}

/// The verdict on `ends`, of which `first` has failed first, after the ranks were sent `signals`.
///
/// `starter` is what has started them, and how that has ended.
pub(super) fn verdict(
    ends: &[RankEnd],
    first: Option<usize>,
    signals: &[i32],
    starter: (&str, Option<ExitStatus>),
) -> Verdict {
    if let Some(Some(Outcome::Code(code))) = ends.first().map(|end| end.outcome)
        && ends.iter().all(|end| end.outcome == Some(Outcome::Code(code)))
    {
        return Verdict::Agreed(code);
    }
    let is_stopping = signals.iter().any(|&signal| signal != SIGUSR1);
    if ends.iter().all(|end| end.pid.is_none()) {
        return match signals.iter().find(|&&signal| signal != SIGUSR1) {
            Some(signal) => Verdict::Agreed(128 + signal),
            None => Verdict::NotStarted(describe(starter)),
        };
    }
    let Some((rank, end)) = first.and_then(|rank| Some((rank, *ends.get(rank)?))) else {
        return not_all_started(starter);
    };
    let name = format!("rank {rank} (process {})", end.pid.unwrap_or_default());
    match end.outcome {
        Some(Outcome::Signal(signal)) if signals.contains(&signal) => Verdict::Agreed(128 + signal),
        Some(Outcome::Code(code)) if is_stopping => Verdict::Agreed(code),
        Some(Outcome::Signal(signal)) => failed(Exit::Internal, rank, format!("{name} was killed by signal {signal}")),
        Some(Outcome::Code(code)) => {
            let exit = Exit::from_code(code).unwrap_or(Exit::Internal);
            failed(exit, rank, format!("{name} has ended with exit code {code}, and not all others with it"))
        }
        None => ended_by_mpi(ends, rank, starter.1),
    }
}

fn failed(exit: Exit, rank: usize, message: String) -> Verdict {
    Verdict::Failed { exit, message, rank: Some(rank) }
}

/// `rank` is gone without a word. If all are, it was mpiexec that has ended them: because one has asked MPI for it, whose exit code
/// mpiexec has then, or because mpiexec was ended.
fn ended_by_mpi(ends: &[RankEnd], rank: usize, mpiexec: Option<ExitStatus>) -> Verdict {
    let mpiexec = mpiexec.filter(|_| ends.iter().all(|end| end.outcome.is_none()));
    if let Some(signal) = mpiexec.and_then(|status| status.signal()) {
        let message = format!("mpiexec was killed by signal {signal}, and the ranks with it");
        return Verdict::Failed { exit: Exit::Internal, message, rank: None };
    }
    if let Some(exit) = mpiexec.and_then(|status| status.code()).and_then(Exit::from_code) {
        let message = format!("a rank has ended all others with exit code {}", exit as i32);
        return Verdict::Failed { exit, message, rank: None };
    }
    let pid = ends[rank].pid.unwrap_or_default();
    failed(Exit::Internal, rank, format!("the supervisor of rank {rank} (process {pid}) is gone, and so is the rank"))
}

fn not_all_started(starter: (&str, Option<ExitStatus>)) -> Verdict {
    let message = format!("{} before all ranks had started", describe(starter));
    Verdict::Failed { exit: Exit::Internal, message, rank: None }
}

fn describe((starter, status): (&str, Option<ExitStatus>)) -> String {
    match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("{starter} has ended with exit code {code}"),
        Some((None, Some(signal))) => format!("{starter} was killed by signal {signal}"),
        _ => format!("{starter} has not ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::consts::{SIGINT, SIGKILL, SIGTERM};

    const EXITED: fn(i32) -> Option<Outcome> = |code| Some(Outcome::Code(code));
    const KILLED: Option<Outcome> = Some(Outcome::Signal(SIGKILL));

    fn verdict_of(outcomes: &[Option<Outcome>], first: Option<usize>, signals: &[i32], mpiexec: i32) -> Verdict {
        let ends: Vec<RankEnd> = outcomes.iter().map(|&outcome| RankEnd { pid: Some(100), outcome }).collect();
        verdict(&ends, first, signals, ("mpiexec", Some(ExitStatus::from_raw(mpiexec << 8))))
    }

    #[test]
    fn ranks_that_agree_give_their_exit_code() {
        // 9 is what mpiexec says of anything.
        for code in [0, 75, 78, 129] {
            assert_eq!(verdict_of(&[EXITED(code); 4], Some(1), &[], 9), Verdict::Agreed(code));
        }
    }

    #[test]
    fn who_has_failed_first_is_named() {
        for (outcomes, first, exit, words) in [
            (vec![None, KILLED, None], 1, Exit::Internal, "rank 1 (process 100) was killed by signal 9"),
            (vec![None, EXITED(71)], 1, Exit::Memory, "rank 1 (process 100) has ended with exit code 71"),
            (vec![EXITED(1), None], 0, Exit::Internal, "rank 0 (process 100) has ended with exit code 1"),
            (vec![EXITED(0), None], 1, Exit::Internal, "supervisor of rank 1 (process 100) is gone"),
        ] {
            let Verdict::Failed { exit: exit_code, message, rank } = verdict_of(&outcomes, Some(first), &[], 9) else {
                panic!("{outcomes:?}")
            };
            assert_eq!((exit_code, rank), (exit, Some(first)));
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_rank_that_ends_all_through_mpi_gives_the_code() {
        let Verdict::Failed { exit, rank, .. } = verdict_of(&[None, None], Some(1), &[], 71) else { panic!() };
        assert_eq!((exit, rank), (Exit::Memory, None));
        let Verdict::Failed { exit, .. } = verdict_of(&[None, None], Some(1), &[], 9) else { panic!() };
        assert_eq!(exit, Exit::Internal);
        let ends = [RankEnd { pid: Some(1), outcome: None }; 2];
        let Verdict::Failed { message, rank, .. } =
            verdict(&ends, Some(0), &[], ("mpiexec", Some(ExitStatus::from_raw(SIGKILL))))
        else {
            panic!()
        };
        assert_eq!((message.starts_with("mpiexec was killed by signal 9"), rank), (true, None));
    }

    #[test]
    fn what_was_asked_for_is_no_failure() {
        assert_eq!(verdict_of(&[EXITED(75), None], Some(0), &[SIGTERM], 9), Verdict::Agreed(75));
        let by_signal = Some(Outcome::Signal(SIGINT));
        assert_eq!(verdict_of(&[by_signal, None], Some(0), &[SIGINT], 9), Verdict::Agreed(130));
        // A request to save is none to end.
        let Verdict::Failed { rank, .. } = verdict_of(&[EXITED(75), None], Some(0), &[SIGUSR1], 9) else { panic!() };
        assert_eq!(rank, Some(0));
        // Nor is any other death meant by a request to stop.
        let Verdict::Failed { rank, .. } = verdict_of(&[None, KILLED], Some(1), &[SIGTERM], 9) else { panic!() };
        assert_eq!(rank, Some(1));
    }

    #[test]
    fn a_launch_without_ranks_is_mpiexecs_failure() {
        let none = [RankEnd { pid: None, outcome: None }; 2];
        let status = ("mpiexec", Some(ExitStatus::from_raw(5 << 8)));
        assert_eq!(verdict(&none, None, &[], status), Verdict::NotStarted("mpiexec has ended with exit code 5".into()));
        assert_eq!(verdict(&none, None, &[SIGINT], status), Verdict::Agreed(130));
    }
}
