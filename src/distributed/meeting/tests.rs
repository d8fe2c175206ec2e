use super::*;
use crate::runtime::error::failure_in;
use std::sync::mpsc::{Receiver, channel};

/// A port at which nobody listens.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn meeting(port: u16, rank: usize, ranks: usize) -> Meeting {
    Meeting {
        host: "127.0.0.1".into(),
        port,
        rank,
        ranks,
        run: "this run".into(),
        name: format!("rank {rank} (host h{rank})"),
        gpu: format!("gpu {rank}"),
        limit: Duration::from_secs(20),
    }
}

type Met = Result<(Vec<u8>, Link)>;

fn attend(meeting: &Meeting) -> Met {
    meet(meeting, || Ok(vec![1, 2, 3]))
}

/// Lets all of them meet at once.
fn meet_all(meetings: &[Meeting]) -> Vec<Met> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = meetings.iter().map(|meeting| scope.spawn(|| attend(meeting))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn all(ranks: usize) -> Vec<Meeting> {
    let port = free_port();
    (0..ranks).map(|rank| meeting(port, rank, ranks)).collect()
}

fn failure(met: Met) -> Failure {
    let error = met.map(|_| ()).unwrap_err();
    let failure = failure_in(&error).unwrap().clone();
    assert!(failure.hint.is_some(), "{}", failure.message);
    failure
}

fn watched(link: &Link) -> Receiver<Ending> {
    let (ended, endings) = channel();
    // The test may be over by then: a thread that panics would count as dead in the whole process.
    link.watch(move |ending| _ = ended.send(ending)).unwrap();
    endings
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn all_ranks_hear_what_the_first_tells() {
    for ranks in [1, 2, 4, 8] {
        let met: Vec<_> = meet_all(&all(ranks)).into_iter().map(Result::unwrap).collect();
        assert!(met.iter().all(|(told, _)| *told == [1, 2, 3]), "{ranks} ranks");
        // They leave in any order, and nobody takes it for a failure.
        let endings: Vec<_> = met.iter().map(|(_, link)| watched(link)).collect();
        met.iter().rev().for_each(|(_, link)| link.leave());
        drop(met);
        assert!(endings.iter().all(|ended| ended.recv_timeout(SOON).is_err()), "{ranks} ranks");
    }
}

#[test]
fn a_rank_that_is_gone_is_named_to_all() {
    for victim in [0, 2] {
        let mut met: Vec<_> = meet_all(&all(4)).into_iter().map(Result::unwrap).collect();
        let endings: Vec<_> = met.iter().map(|(_, link)| watched(link)).collect();
        drop(met.remove(victim));
        for (rank, ended) in endings.iter().enumerate().filter(|(rank, _)| *rank != victim) {
            let expected = if rank == 0 || victim == 0 { Ending::Lost(victim) } else { Ending::Told(victim) };
            assert_eq!(ended.recv_timeout(SOON).unwrap(), expected, "rank {rank}");
        }
    }
}

#[test]
fn a_rank_that_ends_all_gives_its_exit_code() {
    for rank in [0, 3] {
        let met: Vec<_> = meet_all(&all(4)).into_iter().map(Result::unwrap).collect();
        let endings: Vec<_> = met.iter().map(|(_, link)| watched(link)).collect();
        met[rank].1.abort(71);
        for (other, ended) in endings.iter().enumerate().filter(|(other, _)| *other != rank) {
            assert_eq!(ended.recv_timeout(SOON).unwrap(), Ending::Asked(71), "rank {other}");
        }
    }
}

#[test]
fn nobody_waits_for_ever() {
    let short = |rank: usize| Meeting { limit: Duration::from_millis(500), ..meeting(free_port(), rank, 3) };
    let nobody = failure(attend(&short(1)));
    assert!(nobody.exit == Exit::Io && nobody.message.starts_with("rank 0 has not come"), "{}", nobody.message);
    let alone = failure(attend(&short(0)));
    assert!(alone.exit == Exit::Io && alone.message.starts_with("rank 1, 2 has not come"), "{}", alone.message);
    let lost = Meeting { host: "no-such-host.invalid".into(), ..short(1) };
    assert_eq!(failure(attend(&lost)).exit, Exit::Io);
}

#[test]
fn a_port_in_use_is_said() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let taken = failure(attend(&meeting(port, 0, 2)));
    assert!(taken.exit == Exit::Config && taken.message.contains("cannot listen"), "{}", taken.message);
    assert!(taken.hint.unwrap().contains("MASTER_PORT"));
}

#[test]
fn another_service_is_recognised() {
    for (says, words) in [("HTTP/1.1 400 Bad Request\r\n", "HTTP/1.1 400"), ("", "says nothing")] {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = service.local_addr().unwrap().port();
        let refused = std::thread::scope(|scope| {
            let rank =
                scope.spawn(|| failure(attend(&Meeting { limit: Duration::from_secs(1), ..meeting(port, 1, 2) })));
            let (mut stream, _) = service.accept().unwrap();
            stream.write_all(says.as_bytes()).unwrap();
            rank.join().unwrap()
        });
        assert!(refused.exit == Exit::Config && refused.message.contains(words), "{}", refused.message);
    }
}

#[test]
fn strangers_do_not_disturb() {
    let port = free_port();
    let met = std::thread::scope(|scope| {
        let first = scope.spawn(move || attend(&meeting(port, 0, 2)));
        let mut stranger = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(LOOK),
            }
        };
        stranger.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        let of_another_run = failure(attend(&Meeting { run: "another".into(), ..meeting(port, 1, 2) }));
        assert!(of_another_run.exit == Exit::Config && of_another_run.message.contains("another run"));
        attend(&meeting(port, 1, 2)).unwrap();
        first.join().unwrap()
    });
    assert_eq!(met.unwrap().0, [1, 2, 3]);
}

#[test]
fn ranks_that_are_no_group_all_hear_why() {
    let hurried = |ranks| {
        all(ranks).into_iter().map(|meeting| Meeting { limit: Duration::from_secs(2), ..meeting }).collect::<Vec<_>>()
    };
    let mut same_gpu = hurried(4);
    same_gpu[2].gpu = same_gpu[1].gpu.clone();
    // Two of one number: the third of these is the second rank 1.
    let mut twice = hurried(3);
    twice[2].rank = 1;
    let mut other_number = hurried(2);
    other_number[1].ranks = 4;
    for (meetings, words) in
        [(same_gpu, "the same GPU, which NCCL refuses"), (twice, "two of rank 1"), (other_number, "one of 4 ranks")]
    {
        for (rank, met) in meet_all(&meetings).into_iter().enumerate() {
            let failure = failure(met);
            // Who comes after the failure finds nobody.
            let late = rank > 0 && failure.exit == Exit::Io;
            assert!(late || failure.exit == Exit::Config && failure.message.contains(words), "{}", failure.message);
        }
    }
}
