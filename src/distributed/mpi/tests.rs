//! Ranks that are processes: each test starts the test program again under `mpiexec`, where it plays the part of a rank.

use super::super::group::ProcessGroup;
use super::super::shards::Shards;
use super::super::tests::{gradient, sum_of_tree};
use super::super::{Collective, tree};
use super::*;
use crate::runtime::error::failure_in;
use candle_core::{Device, Tensor};
use std::process::{Command, Output};

/// Set where the test program is a rank.
const IS_RANK: &str = "LLAMA_LITE_TEST_IS_RANK";

fn is_rank() -> bool {
    std::env::var_os(IS_RANK).is_some()
}

/// This test program, to do the test `name` of this file alone.
fn rank(launcher: &[&str], name: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut words = launcher.to_vec();
    words.push(program.to_str().unwrap());
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["--exact", &format!("distributed::mpi::tests::{name}"), "--nocapture"]);
    command.args(["--test-threads", "1"]).env(IS_RANK, "1").stdin(std::process::Stdio::null());
    command
}

/// What `ranks` ranks print, and how they end.
fn start(ranks: usize, name: &str) -> Output {
    rank(&[env!("LLAMA_LITE_MPIEXEC"), "-n", &ranks.to_string()], name).output().unwrap()
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

fn group() -> ProcessGroup {
    ProcessGroup::new(Box::new(join(None).unwrap()), "cpu").unwrap()
}

/// Ends a rank as the program ends.
fn exit(result: Result<()>) -> ! {
    let code = match &result {
        Ok(()) => 0,
        Err(error) => failure_in(error).map_or(Exit::Internal, |failure| failure.exit) as i32,
    };
    // In one piece: the lines of several ranks meet.
    note(&format!("ended with {result:?}"));
    std::process::exit(code)
}

/// Bytes that depend on who sends them to whom.
fn bytes(from: usize, to: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + from * 7 + to * 3 + i / 251) as u8).collect()
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn bytes_arrive_at_any_length() {
    if is_rank() {
        let mpi = join(Some(4)).unwrap();
        assert!(!mpi.version().is_empty());
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut shared = maps.lines().filter(|line| line.contains("/dev/shm/mpich_shm_")).peekable();
        assert!(shared.peek().is_some() || !mpi.version().starts_with("MPICH"), "{maps}");
        assert!(shared.all(|line| line.ends_with("(deleted)")), "a killed rank would leave a file: {maps}");
        let own = mpi.rank();
        for (lower, upper) in [(0, 0), (1, 0), (0, 1), (1, 1), (1000, 1001), (70_000, 3), (5_000_000, 7_000_001)] {
            for bit in [1, 2] {
                let peer = own ^ bit;
                let (sent, expected) = if own < peer { (lower, upper) } else { (upper, lower) };
                let mut received = vec![0; expected];
                mpi.exchange(peer, &bytes(own, peer, sent), &mut received, &mut || Ok(())).unwrap();
                assert!(received == bytes(peer, own, expected), "{sent} and {expected} bytes");
            }
        }
        mpi.leave();
        exit(Ok(()));
    }
    let output = start(4, "bytes_arrive_at_any_length");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(text(&output).matches("ended with Ok").count(), 4, "{}", text(&output));
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_group_over_processes_does_what_it_does_over_threads() {
    if is_rank() {
        let group = group();
        let ranks = group.ranks();
        let long = |rank: usize| "x".repeat(rank * 700);
        assert_eq!(group.gather("texts", &long(group.rank())).unwrap(), (0..ranks).map(long).collect::<Vec<_>>());
        let dealt = group.deal("squares", 13, |i| Ok(i * i)).unwrap();
        assert_eq!(dealt, (0..13).map(|i| i * i).collect::<Vec<_>>());
        for (n, piece) in [(3_000_000, 4096), (10_000, 128), (3, 64)] {
            let shards = Shards::new(n, piece, ranks);
            let flat = Tensor::from_vec(gradient(group.rank(), n), n, &Device::Cpu).unwrap();
            tree::reduce_scatter(&group, &flat, &shards).unwrap();
            let own = shards.of_rank(group.rank());
            let sum = sum_of_tree(ranks, n);
            assert!(flat.to_vec1::<f32>().unwrap()[own.clone()] == sum[own], "{n} elements");
            tree::all_gather(&group, &flat, &shards).unwrap();
            assert!(flat.to_vec1::<f32>().unwrap() == sum, "{n} elements");
        }
        exit(group.end(Ok(())));
    }
    for ranks in [1, 2, 4] {
        let output = start(ranks, "a_group_over_processes_does_what_it_does_over_threads");
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(text(&output).matches("ended with Ok").count(), ranks, "{}", text(&output));
    }
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_failure_of_one_ends_all_with_its_text() {
    if is_rank() {
        let group = group();
        let own = if group.rank() == 2 { Err(fail(Exit::Data, "bad data").into()) } else { Ok(()) };
        exit(group.end(own));
    }
    let output = start(4, "a_failure_of_one_ends_all_with_its_text");
    // The launcher joins the exit codes of all by their bits: they are the same.
    assert_eq!(output.status.code(), Some(Exit::Data as i32), "{}", text(&output));
    assert_eq!(text(&output).matches("ended with Err(rank 2 (host ").count(), 4, "{}", text(&output));
}

/// A rank fails while the others exchange gradients with it: they cannot hear of it, and are ended.
#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_failure_amid_other_messages_ends_all() {
    if is_rank() {
        let group = group();
        if group.rank() == 1 {
            exit(group.end(Err(fail(Exit::Data, "bad data").into())));
        }
        let flat = Tensor::zeros(1 << 20, candle_core::DType::F32, &Device::Cpu).unwrap();
        exit(group.end(tree::reduce_scatter(&group, &flat, &Shards::new(1 << 20, 1024, 4))));
    }
    let started = Instant::now();
    let output = start(4, "a_failure_amid_other_messages_ends_all");
    assert_eq!(output.status.code(), Some(Exit::Data as i32), "{}", text(&output));
    assert!(text(&output).contains("error: rank 1 (host "), "{}", text(&output));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

/// Floats that have as many bytes as a message, or nearly.
#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_failure_is_not_taken_for_floats() {
    let name = "a_failure_is_not_taken_for_floats";
    if is_rank() {
        let floats: usize = std::env::var("LLAMA_LITE_TEST_FLOATS").unwrap().parse().unwrap();
        let group = group();
        if group.rank() == 1 {
            exit(group.end(Err(fail(Exit::Data, "bad data").into())));
        }
        let result = group.exchange_floats(1, &vec![0.0; floats], &mut vec![0.0; floats]);
        assert!(result.is_err(), "{floats} floats were received from a rank that has sent none");
        exit(group.end(result));
    }
    for floats in ["255", "256"] {
        let mut command = rank(&[env!("LLAMA_LITE_MPIEXEC"), "-n", "2"], name);
        let output = command.env("LLAMA_LITE_TEST_FLOATS", floats).output().unwrap();
        assert_eq!(output.status.code(), Some(Exit::Data as i32), "{}", text(&output));
        assert!(text(&output).contains("bad data") && !text(&output).contains("panicked"), "{}", text(&output));
    }
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_killed_rank_takes_all_with_it() {
    if is_rank() {
        let group = group();
        if group.rank() == 0 {
            let processes: Vec<_> = group.members().iter().map(|member| member.pid.to_string()).collect();
            note(&format!("processes {}", processes.join(" ")));
        }
        for round in 0.. {
            if group.rank() == 2 && round == 100 {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
            }
            if let Err(error) = group.any("round", false) {
                exit(group.end(Err(error)));
            }
        }
    }
    let started = Instant::now();
    let output = start(4, "a_killed_rank_takes_all_with_it");
    assert!(!output.status.success(), "{}", text(&output));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let printed = text(&output);
    let processes = printed.lines().find_map(|line| line.strip_prefix("processes ")).unwrap();
    assert_eq!(processes.split(' ').count(), 4);
    for process in processes.split(' ') {
        assert!(!std::path::Path::new(&format!("/proc/{process}")).exists(), "process {process} still runs");
    }
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_rank_that_hangs_ends_all_once_another_is_out_of_patience() {
    if is_rank() {
        let group = group();
        group.set_patience(Duration::from_secs(1));
        if group.rank() == 1 {
            std::thread::sleep(Duration::from_secs(60));
        }
        exit(group.end(group.gather("losses", &1).map(drop)));
    }
    let started = Instant::now();
    let output = start(2, "a_rank_that_hangs_ends_all_once_another_is_out_of_patience");
    assert_eq!(output.status.code(), Some(Exit::Internal as i32), "{}", text(&output));
    assert!(text(&output).contains(", cpu) has not answered for 1 s"), "{}", text(&output));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

/// What a watchdog does: it ends all ranks from a thread of its own while this one waits.
#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn any_thread_can_end_all_ranks() {
    if is_rank() {
        let mpi = join(None).unwrap();
        std::thread::scope(|scope| {
            if mpi.rank() == 0 {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(300));
                    mpi.abort(Exit::Memory as i32)
                });
            }
            let peer = mpi.rank() ^ 1;
            // Nobody sends as much.
            let error = mpi.exchange(peer, &[1], &mut [0; 2], &mut || Ok(())).unwrap_err();
            panic!("the exchange has ended with {error:#}");
        });
    }
    let output = start(2, "any_thread_can_end_all_ranks");
    assert_eq!(output.status.code(), Some(Exit::Memory as i32), "{}", text(&output));
    assert!(!text(&output).contains("panicked"), "{}", text(&output));
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_number_of_processes_that_does_not_fit_is_refused_by_all() {
    if is_rank() {
        let expected = std::env::var("LLAMA_LITE_TEST_EXPECTED").ok().map(|n| n.parse().unwrap());
        exit(join(expected).map(drop));
    }
    let name = "a_number_of_processes_that_does_not_fit_is_refused_by_all";
    // Each of the three says it and none is killed by the launcher.
    let output = start(3, name);
    assert_eq!(output.status.code(), Some(Exit::Config as i32), "{}", text(&output));
    assert_eq!(text(&output).matches("3 ranks: their number must be a power of two").count(), 3, "{}", text(&output));
    // As under a launcher that is not this library's: the process finds itself alone.
    let folder = std::path::Path::new(env!("LLAMA_LITE_MPIEXEC")).parent().unwrap().to_owned();
    let alone = rank(&[], name).env("PATH", folder).env("LLAMA_LITE_TEST_EXPECTED", "4").output().unwrap();
    assert_eq!(alone.status.code(), Some(Exit::Config as i32), "{}", text(&alone));
    let said = text(&alone);
    assert!(said.contains("has started 4 processes, and the MPI library (") && said.contains(") sees 1"), "{said}");
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_rank_that_ends_before_it_joins_is_not_waited_for_for_ever() {
    if is_rank() {
        if std::env::var("PMI_RANK").unwrap() == "1" {
            std::process::exit(Exit::Config as i32);
        }
        exit(join_within(Duration::from_secs(1), None).map(drop));
    }
    let started = Instant::now();
    let output = start(2, "a_rank_that_ends_before_it_joins_is_not_waited_for_for_ever");
    assert!(text(&output).contains("not all ranks have started"), "{}", text(&output));
    assert!(!output.status.success() && started.elapsed() < Duration::from_secs(10), "{}", output.status);
}
